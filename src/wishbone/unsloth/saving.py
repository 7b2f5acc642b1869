"""Methods that `FastLanguageModel` adds to its models: save, merge and publish themselves.

The methods have Unsloth's names and arguments, so their signatures repeat each other. `model/merge.py` and
`model/gguf_saving.py` do the work. The methods are attributes of the model instance, so they stay while trainers wrap
it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from wishbone.errors import RequestError
from wishbone.model.atomic_directory import writing
from wishbone.model.gguf_export import gguf_kinds
from wishbone.model.gguf_saving import save_gguf
from wishbone.model.merge import Merge, merge_adapter
from wishbone.model.publishing import MESSAGE, Upload
from wishbone.model.saved_adapter import save_adapter
from wishbone.paths import user_path
from wishbone.unsloth.call_arguments import foreign_signature

METHODS = {"merged_16bit": "merged_16bit", "16bit": "merged_16bit", "lora": "lora"}
FOUR_BIT = ("merged_4bit", "merged_4bit_forced", "4bit")
IGNORED = {
    "state_dict": "the model's own weights are saved",
    "save_function": "weights are saved as safetensors",
    "safe_serialization": "weights are saved as safetensors",
    "variant": "there is one variant",
    "save_peft_format": "adapters are saved in PEFT's format",
    "use_temp_dir": "files always appear whole",
    "tags": "no model card is written",
    "commit_description": "the message says it",
    "temporary_location": "no files are put there",
    "maximum_memory_usage": "layers are merged one by one",
    "datasets": "no model card is written",
    "calibration_dataset": "nothing is calibrated",
    "num_calibration_samples": "nothing is calibrated",
    "max_seq_length": "nothing is calibrated",
    "install_missing_dependencies": "nothing is installed",
    "first_conversion": "llama.cpp converts to what is asked for",
    "imatrix_file": "importance matrices are not used",
    "merge_is_disposable": "the 16-bit model is not kept",
}

IGNORED_FOR_GGUF = IGNORED | {"max_shard_size": "a GGUF file is one file"}


def attach_saving(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Give the model its saving methods, and its tokenizer to save beside it."""
    model.saved_tokenizer = tokenizer  # type: ignore[assignment]
    methods: tuple[Callable[..., Any], ...] = (
        save_pretrained_merged,
        push_to_hub_merged,
        save_pretrained_gguf,
        push_to_hub_gguf,
    )
    for method in methods:
        setattr(model, method.__name__, MethodType(method, model))


@foreign_signature(ignored=IGNORED)
def save_pretrained_merged(
    self: Any,
    save_directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    save_method: str = "merged_16bit",
    push_to_hub: bool = False,
    token: str | bool | None = None,
    is_main_process: bool = True,
    state_dict: Any = None,
    save_function: Any = None,
    max_shard_size: int | str = "5GB",
    *,
    given: frozenset[str],
) -> Merge | None:
    """Save the model with its adapter merged into 16-bit weights ("merged_16bit"), or the adapter alone ("lora").

    Returns:
        What the merge was found to be; None for an adapter, or in a process that is not the main one.

    Raises:
        RequestError: as `merge_adapter`, the disk is full, or the method is not one to save with.
    """
    method = _method(save_method)
    if not is_main_process:
        return None
    tokenizer = tokenizer or _tokenizer(self)
    merge = None
    with writing(user_path(save_directory)):
        if method == "lora":
            save_adapter(self, save_directory, tokenizer)
        else:
            merge = merge_adapter(self, save_directory, tokenizer, max_shard_size=max_shard_size)
    if push_to_hub:
        Upload(Path(save_directory).name, token).send(Path(save_directory))
    return merge


@foreign_signature(ignored=IGNORED)
def push_to_hub_merged(
    self: Any,
    repo_id: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    save_method: str = "merged_16bit",
    use_temp_dir: bool | None = None,
    commit_message: str | None = MESSAGE,
    private: bool | None = None,
    token: str | bool | None = None,
    max_shard_size: int | str = "5GB",
    create_pr: bool = False,
    safe_serialization: bool = True,
    revision: str | None = None,
    *,
    given: frozenset[str],
) -> str:
    """Publish what `save_pretrained_merged` saves, and return the commit's address."""
    _method(save_method)
    with _space(repo_id) as directory:
        self.save_pretrained_merged(directory, tokenizer, save_method, max_shard_size=max_shard_size)
        return Upload(repo_id, token, private, commit_message, create_pr, revision).send(directory)


@foreign_signature(ignored=IGNORED_FOR_GGUF)
def save_pretrained_gguf(
    self: Any,
    save_directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quantization_method: str | Sequence[str] = "fast_quantized",
    first_conversion: str | None = None,
    push_to_hub: bool = False,
    token: str | bool | None = None,
    private: bool | None = None,
    is_main_process: bool = True,
    *,
    given: frozenset[str],
) -> list[Path]:
    """Save the merged model as GGUF files, one for each quantization method, and return their paths.

    Raises:
        RequestError: as `save_gguf`, the disk is full, or the method is not known.
    """
    kinds = gguf_kinds(quantization_method)
    if not is_main_process:
        return []
    target = user_path(save_directory).absolute()
    with writing(target):
        files = save_gguf(self, tokenizer or _tokenizer(self), target, kinds)
    if push_to_hub:
        Upload(target.name, token, private).send(target, only="*.gguf")
    return files


@foreign_signature(ignored=IGNORED_FOR_GGUF)
def push_to_hub_gguf(
    self: Any,
    repo_id: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quantization_method: str | Sequence[str] = "fast_quantized",
    first_conversion: str | None = None,
    use_temp_dir: bool | None = None,
    commit_message: str | None = MESSAGE,
    private: bool | None = None,
    token: str | bool | None = None,
    max_shard_size: int | str = "5GB",
    create_pr: bool = False,
    safe_serialization: bool = True,
    revision: str | None = None,
    *,
    given: frozenset[str],
) -> str:
    """Publish what `save_pretrained_gguf` saves, and return the commit's address."""
    with _space(repo_id) as directory:
        self.save_pretrained_gguf(directory, tokenizer, quantization_method)
        return Upload(repo_id, token, private, commit_message, create_pr, revision).send(directory)


def _method(asked: str) -> str:
    if asked in FOUR_BIT:
        raise RequestError(
            f"save_method {asked!r} would round the merged weights to 4 bits, in coarser steps than most of what "
            "training changed; use 'merged_16bit', and load that with load_in_4bit=True where it has to be small"
        )
    if asked not in METHODS:
        near = difflib.get_close_matches(str(asked), METHODS, n=2) or list(METHODS)
        raise RequestError(f"save_method {asked!r} is not known; use one of {', '.join(near)}")
    return METHODS[asked]


def _tokenizer(model: nn.Module) -> PreTrainedTokenizerBase:
    tokenizer = getattr(model, "saved_tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise RequestError("no tokenizer was given, and the model has none; give the tokenizer")
    return tokenizer


@contextmanager
def _space(name: str) -> Iterator[Path]:
    """Yield a temporary directory with the name of a model."""
    with TemporaryDirectory(prefix="wishbone-") as root:
        yield Path(root) / name.rsplit("/", 1)[-1]
