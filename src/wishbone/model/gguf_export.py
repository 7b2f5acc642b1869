"""GGUF files for llama.cpp, written here or by llama.cpp's own tools.

`gguf_writing` writes the families that it knows with 32, 16 or 8 bits a weight. Other models need llama.cpp's
`convert_hf_to_gguf.py`, and fewer bits its `llama-quantize`, which makes them from a larger file. Both are looked for
in $LLAMA_CPP (a checkout of llama.cpp) and in PATH.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from wishbone.errors import RequestError
from wishbone.model.gguf_writing import obstacle, write_gguf

CONVERTER, QUANTIZER = "convert_hf_to_gguf.py", "llama-quantize"
CONVERTED = ("f32", "f16", "bf16", "q8_0")
QUANTIZED = (
    "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_1", "q4_k", "q4_k_s", "q4_k_m", "q5_0", "q5_1", "q5_k", "q5_k_s",
    "q5_k_m", "q6_k",
)  # fmt: skip
NO_CONVERTER = (
    f"llama.cpp's {CONVERTER} is not found; clone llama.cpp, `pip install -r requirements.txt` in it, and set "
    "LLAMA_CPP to the directory of the clone"
)
ALIASES = {"not_quantized": "bf16", "fast_quantized": "q8_0", "quantized": "q4_k_m"}
"""Unsloth's names for kinds."""


def gguf_kinds(asked: str | Sequence[str], option: str = "quantization_method") -> list[str]:
    """Return llama.cpp's names of the kinds that are asked for, by its names or Unsloth's; `option` is for errors.

    Raises:
        RequestError: a name is not known.
    """
    names = list(asked) if isinstance(asked, list | tuple) else [asked]
    kinds, problems = [], []
    for name in names:
        kind = ALIASES.get(str(name).lower(), str(name).lower())
        if kind in CONVERTED + QUANTIZED:
            kinds.append(kind)
            continue
        near = difflib.get_close_matches(kind, [*ALIASES, *CONVERTED, *QUANTIZED], n=3) or [*ALIASES, "f16", "q4_k_m"]
        problems.append(f"{option} {name!r} is not known; use one of {', '.join(near)}")
    if problems:
        raise RequestError(problems)
    return list(dict.fromkeys(kinds))


def check_gguf_tools(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, kinds: Sequence[str]) -> None:
    """Raise a RequestError if a model or a kind needs a tool of llama.cpp that is not found."""
    problems = []
    unknown = obstacle(config, tokenizer)
    if unknown and _find(CONVERTER) is None:
        problems.append(f"{unknown}; {NO_CONVERTER}")
    made = sorted(set(kinds) & set(QUANTIZED))
    if made and _find(QUANTIZER) is None:
        problems.append(_no_quantizer(made))
    if problems:
        raise RequestError(problems)


def check_quantizer(kind: str) -> None:
    """Raise a RequestError if this kind needs llama.cpp's `llama-quantize` and it is not found."""
    if kind in QUANTIZED and _find(QUANTIZER) is None:
        raise RequestError(_no_quantizer([kind]))


def write_kind(model: Path, tokenizer: PreTrainedTokenizerBase, file: Path, kind: str, name: str) -> str:
    """Write a model directory as one GGUF file, and return what wrote it.

    Args:
        model: a directory with a merged model in float32, or in the dtype of the file, and its tokenizer.
        tokenizer: the same tokenizer.
        file: a new file.
        kind: as `gguf_kinds` returns it.
        name: of the model, for people.

    Raises:
        RequestError: the model or the kind needs a tool of llama.cpp, and it is not found or fails.
        OSError: the disk is full or fails.
    """
    unknown = obstacle(AutoConfig.from_pretrained(model), tokenizer)
    converter, quantizer = _find(CONVERTER), _find(QUANTIZER)
    check_quantizer(kind)
    if unknown and converter is None:
        raise RequestError(f"{unknown}; {NO_CONVERTER}")
    with TemporaryDirectory(prefix=".gguf-", dir=file.parent) as inside:
        first = file if kind in CONVERTED else Path(inside) / "f32.gguf"
        first_kind = kind if kind in CONVERTED else "f32"
        if unknown:
            _run([sys.executable, converter, model, "--outfile", first, "--outtype", first_kind], first)
        else:
            write_gguf(model, tokenizer, first, first_kind, name)
        if first is not file:
            _run([quantizer, first, file, kind.upper()], file)
    return "llama.cpp" if unknown or kind in QUANTIZED else "gguf-py"


def _no_quantizer(kinds: Sequence[str]) -> str:
    return (
        f"{', '.join(kinds)} needs llama.cpp's {QUANTIZER}, which is not found; build llama.cpp (or install it) and "
        f"set LLAMA_CPP or PATH, or use one of {', '.join(CONVERTED)}"
    )


def _find(tool: str) -> Path | None:
    root = os.environ.get("LLAMA_CPP")
    places = [Path(root) / part / tool for part in (".", "build/bin", "bin")] if root else []
    found = next((place for place in places if place.is_file()), None) or shutil.which(tool)
    return Path(found) if found else None


def _run(command: Sequence[str | Path | None], out: Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode or not out.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RequestError(
            f"{Path(str(command[1] if str(command[0]) == sys.executable else command[0])).name} failed with status "
            f"{done.returncode} ({said[-1] if said else 'it said nothing'}); update llama.cpp, or keep the 16-bit model"
        )
