"""Which code of Wishbone a process has imported."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from benchmarks.harness.results import Row


def imported_package(source: Path) -> Row:
    """Return where `wishbone` was imported from, and the beginning of a hash of its code.

    Args:
        source: the directory that it must come from.

    Raises:
        SystemExit: it comes from elsewhere, so that other code than asked for would be measured.
    """
    file = sys.modules["wishbone"].__file__
    assert file is not None
    package = Path(file).resolve().parent
    if package != source.resolve() / "wishbone":
        raise SystemExit(f"wishbone was imported from {package}, not from {source}")
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return {"file": "/".join(Path(file).parts[-4:]), "code": code.hexdigest()[:16]}
