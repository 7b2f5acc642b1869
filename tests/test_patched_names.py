"""What tests replace in Wishbone's modules exists, also in tests that run rarely: on GPUs, or for many seconds."""

from __future__ import annotations

import ast
from pathlib import Path
from pkgutil import resolve_name

import pytest

TESTS = Path(__file__).parent


def patched(path: Path) -> set[str]:
    """Dotted names that a file gives to `monkeypatch.setattr`, as one text or as something imported and its name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "wishbone"
        for alias in node.names
    }
    found = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr"):
            continue
        match node.args:
            case [ast.Constant(value=str(name)), *_] if name.startswith("wishbone."):
                found.add(name)
            case [ast.Name(id=owner), ast.Constant(value=str(name)), _] if owner in imported:
                found.add(f"{imported[owner]}.{name}")
    return found


FILES = {path: names for path in TESTS.rglob("test_*.py") if (names := patched(path))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_replaced_exists(path: Path) -> None:
    missing = []
    for name in sorted(FILES[path]):
        try:
            resolve_name(name)
        except (AttributeError, ImportError):
            missing.append(name)
    assert not missing
