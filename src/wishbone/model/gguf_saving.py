"""A model in memory as GGUF files, one for each kind, checked before they take their place.

The adapter is merged as each kind asks: kinds of 8 and fewer bits are rounded once, from float32. Files that are
written here are read back and compared (`gguf_check`); those of llama.cpp's tools are its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from wishbone.errors import RequestError
from wishbone.model.agreement import real_sequences, sequence_logps
from wishbone.model.gguf_check import check_gguf
from wishbone.model.gguf_export import check_gguf_tools, write_kind
from wishbone.model.merge import merge_adapter
from wishbone.model.merged_weights import base_of

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}
"""What the weights are merged to, by kind; float32 for the others."""


def save_gguf(model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path, kinds: Sequence[str]) -> list[Path]:
    """Write one GGUF file a kind, `<directory's name>.<KIND>.gguf`, into a directory, and return their paths.

    Args:
        model: with or without an adapter.
        tokenizer: of the model.
        directory: where the files go.
        kinds: as `gguf_kinds` returns them.

    Raises:
        RequestError: a tool of llama.cpp is needed and missing, or fails; the merge or a file is not what the model is.
    """
    check_gguf_tools(base_of(model).config, tokenizer, kinds)
    sequences = real_sequences(tokenizer)
    expected = sequence_logps(model, sequences)
    stem = directory.absolute().name
    directory.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with TemporaryDirectory(prefix=".gguf-", dir=directory) as inside:
        for kind in kinds:
            dtype = DTYPES.get(kind, torch.float32)
            merged = Path(inside) / str(dtype).removeprefix("torch.")
            if not merged.is_dir():
                merge_adapter(model, merged, tokenizer, dtype=dtype)
            file = Path(inside) / f"{stem}.{kind.upper()}.gguf"
            if write_kind(merged, tokenizer, file, kind, stem) == "gguf-py":
                agreement = check_gguf(file, kind, merged, tokenizer, sequences, expected)
                if not agreement.holds:
                    raise RequestError(
                        f"{file.name} differs from the model by {agreement.mean:.2g} nats a token (at most "
                        f"{agreement.largest:.2g}), and rounding explains {agreement.allowed_mean:.2g} "
                        f"({agreement.allowed_largest:.2g}); nothing was kept. Save it with save_pretrained_merged"
                    )
            files.append(file)
        return [Path(shutil.move(file, directory / file.name)) for file in files]
