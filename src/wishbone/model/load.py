"""One way to load a model, wherever it is: the embedded model, a hub id, a directory, or a GGUF file.

Problems that can be found without the weights are reported before the weights are read. Weights are safetensors. A
checkpoint that lacks some of the model's weights is refused, because transformers would fill them in at random and
training would go on without a word.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from wishbone.errors import RequestError, one_line, some_of
from wishbone.model.checkpoint import (
    damaged_weights,
    has_text_class,
    missing_files,
    not_causal,
    oversized,
    reads_images,
)
from wishbone.model.device import choose_device, choose_dtype, on_device
from wishbone.model.embedded import EMBEDDED_NAME, embedded_directory
from wishbone.model.fp8 import fp8_options, is_stored_in_fp8
from wishbone.model.gguf import gguf_directory
from wishbone.model.hub import find_on_hub
from wishbone.model.int8 import int8_options
from wishbone.model.quantization import quantization_options, settle_quantized_layers
from wishbone.model.quantized_experts import SCALES, experts_in_nf4
from wishbone.paths import user_path
from wishbone.process_memory import host_memory_given_back

INSTEAD = f"give a local model directory, a .gguf file, or the embedded model {EMBEDDED_NAME!r}"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """Where transformers reads a model from and with which options, and its config.json if weights are to be read."""

    path: str
    options: dict[str, Any]
    hub_id: str | None
    config: dict[str, Any]


def load_model(
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    load_in_fp8: bool = False,
    load_in_rotated_int8: bool = False,
    token: str | None = None,
    images: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Args:
        name: "smollm2-135m-instruct", a hub id, a model directory, or a .gguf file.
        dtype: of the weights; "auto" is bfloat16 on GPUs that have it, float16 on older ones, float32 on the CPU.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run Python code that comes with the model.
        device: where the weights go; None is this process's GPU if there is one, else the CPU.
        load_in_4bit: quantize the linear layers to NF4, which then compute in `dtype`. A checkpoint that bitsandbytes
            has quantized already is loaded as it is.
        load_in_8bit: quantize them to LLM.int8, whose rounding depends on what else is in a batch.
        load_in_fp8: quantize them to FP8 with a scale for each row, and multiply in FP8. A checkpoint in FP8 is loaded
            in FP8 without this, too.
        load_in_rotated_int8: rotate them and quantize them to int8 with a scale for each row, and multiply in int8.
        token: for hub repositories that need one; None is the token of `hf auth login`.
        images: load a model that reads images, and its processor instead of a tokenizer. Without it such a model
            is loaded for text: without its towers where transformers has a class for that, else whole.

    Raises:
        RequestError: the model is not found, is damaged, cannot be quantized here, or is not a causal language model.
    """
    place = choose_device(device)
    number_format = choose_dtype(dtype, place)
    source = _find(name, revision, trust_remote_code, weights=True, token=token, images=images)
    if sum((load_in_4bit, load_in_8bit, load_in_fp8, load_in_rotated_int8)) > 1:
        raise RequestError(
            "load_in_4bit, load_in_8bit, load_in_fp8 and load_in_rotated_int8 exclude each other; set one of them"
        )
    quantization: dict[str, Any] | None
    if load_in_rotated_int8:
        quantization = int8_options(name, source.config, place)
    elif load_in_fp8 or (is_stored_in_fp8(source.config) and not (load_in_4bit or load_in_8bit)):
        quantization = fp8_options(name, source.path, source.config, source.options, place)
    else:
        bits = 4 if load_in_4bit else 8 * load_in_8bit
        quantization = quantization_options(name, source.config, place, number_format, bits=bits)
    placement = {} if place.type == "cpu" and quantization is None else {"device_map": {"": place}}
    tokenizer = _processor(name, source) if images else _tokenizer(name, source)
    whole = images or (reads_images(source.config) and not has_text_class(source.config))
    family = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    try:
        with experts_in_nf4(), host_memory_given_back(), on_device(place):
            model, report = family.from_pretrained(
                source.path,
                dtype=number_format,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **(quantization or {}),
                **placement,
                **source.options,
            )
    except SafetensorError as error:
        raise RequestError(f"the weights of {name!r} are damaged ({error}); copy or download them again") from error
    except RequestError as error:
        raise RequestError([f"{name!r}: {problem}" for problem in error.problems]) from error
    except (OSError, ValueError, ImportError, RecursionError) as error:
        raise _unloadable(name, error) from error
    _refuse_random_weights(name, model, report)
    settle_quantized_layers(model, number_format)
    if source.hub_id is not None:
        model.name_or_path = source.hub_id  # which a local copy does not know
    return model, tokenizer


def read_model_config(
    name: str, revision: str | None = None, trust_remote_code: bool = False, *, weights: bool = True
) -> dict[str, Any]:
    """Return the config.json of a model, after the checks that `load_model` makes before it reads weights.

    Args:
        name: as for `load_model`.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: whether a model that needs its own code passes.
        weights: whether weights have to be there; without them an empty config.json is as good as none.

    Raises:
        RequestError: as `load_model`.
    """
    source = _find(name, revision, trust_remote_code, weights=weights)
    if source.config or not (Path(source.path) / "config.json").is_file():
        return source.config
    return _config(name, source.path, source.options)


def load_tokenizer(name: str, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load only the tokenizer of a model; `name` and errors as for `load_model`."""
    return _tokenizer(name, _find(name, revision, trust_remote_code, weights=False))


def load_processor(name: str, revision: str | None = None, trust_remote_code: bool = False) -> ProcessorMixin:
    """Load only the processor of a model that reads images; `name` and errors as for `load_model`."""
    return _processor(name, _find(name, revision, trust_remote_code, weights=False))


def saved_with_processor(directory: Path) -> bool:
    """Return whether a directory holds a processor of images, as a model or an adapter that was trained on images does.

    Args:
        directory: that transformers' or PEFT's `save_pretrained` wrote.
    """
    return any((directory / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load a model's configuration, without its weights; of a hub id only config.json is fetched.

    Args:
        name, revision, trust_remote_code: as for `load_model`.

    Raises:
        RequestError: there is no such model, or transformers does not know its kind.
    """
    path = resolve_model(name)
    options = {"local_files_only": True} if Path(path).is_dir() else {"revision": revision}
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, RecursionError) as error:
        raise _unloadable(name, error) from error


def could_be_on_the_hub(name: str) -> bool:
    """Whether a model's name may be an id on the hub: it does not look like a path."""
    return not (name.startswith((".", "~", os.sep)) or name.lower().endswith(".gguf")) and bool(HUB_ID.fullmatch(name))


def resolve_model(name: str) -> str:
    """Return the directory of a local, embedded or GGUF model, which is converted first, or `name` for a hub id.

    Raises:
        RequestError: neither a path that exists nor a possible hub id.
    """
    if name == EMBEDDED_NAME:
        return str(embedded_directory())
    if not name.strip():
        raise RequestError(f"the model's name is empty; {INSTEAD}")
    path = user_path(name)
    if path.is_dir():
        return str(path)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return str(gguf_directory(path))
        raise RequestError(f"{name!r} is a file; {INSTEAD}")
    if not could_be_on_the_hub(name):
        raise RequestError(f"{name!r} does not exist{_nearest(path)}; {INSTEAD}")
    return name


def _find(
    name: str,
    revision: str | None,
    trust_remote_code: bool,
    *,
    weights: bool,
    token: str | None = None,
    images: bool = False,
) -> Source:
    """Resolve `name`, and refuse a model that cannot be loaded before it is loaded."""
    path = resolve_model(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if token is not None:
        options["token"] = token
    local = Path(path) if Path(path).is_dir() else None
    hub_id = None if local else name
    where = ""
    if local is not None and revision is not None:
        raise RequestError(f"revision {revision!r} was given for {name!r}, which is local; leave the revision out")
    if local is None:
        found = find_on_hub(name, revision, instead=INSTEAD + _nearest(Path(name)), token=token)
        if isinstance(found, Path):
            local, path, where = found, str(found), " from its local copy, and the hub does not answer"
        else:
            files = found
            if revision is not None:
                options["revision"] = revision
    if local is not None:
        options["local_files_only"] = True
        files = [entry.name for entry in local.iterdir()]
    if weights and "adapter_config.json" in files:
        raise RequestError(f"{name!r} holds an adapter, not a model; name its base model, or merge the two with PEFT")
    problems = missing_files(files, weights=weights)
    if local is not None and weights and not problems:
        problems = damaged_weights(local)
    config: dict[str, Any] = {}
    if weights and not problems:
        config = _config(name, path, options)
        reason = oversized(config, local) or not_causal(config, trust_remote_code=trust_remote_code, images=images)
        problems = [reason] if reason else []
    if problems:
        raise RequestError([f"{name!r} cannot be loaded{where}: {problem}" for problem in problems])
    return Source(path, options, hub_id, config)


def _config(name: str, path: str, options: dict[str, Any]) -> dict[str, Any]:
    asked = {key: value for key, value in options.items() if key != "trust_remote_code"}
    try:
        config, _ = PretrainedConfig.get_config_dict(path, **asked)
    except (OSError, ValueError, RecursionError) as error:
        raise _unloadable(name, error) from error
    return dict(config)


def _tokenizer(name: str, source: Source) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.options)
    except Exception as error:
        foreseen = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RecursionError)
        if type(error) is not Exception and not isinstance(error, foreseen):  # `tokenizers` raises plain Exceptions
            raise
        raise RequestError(f"the tokenizer of {name!r} cannot be loaded ({one_line(error)}); {INSTEAD}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _processor(name: str, source: Source) -> ProcessorMixin:
    try:
        processor = AutoProcessor.from_pretrained(source.path, **source.options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RecursionError) as error:
        raise RequestError(
            f"the processor of {name!r} cannot be loaded ({one_line(error)}); it needs preprocessor_config.json beside "
            "the tokenizer, and pillow and torchvision installed"
        ) from error
    if not isinstance(processor, ProcessorMixin) or not hasattr(processor, "image_processor"):
        raise RequestError(f"{name!r} has no processor of images, only a {type(processor).__name__}; copy it whole")
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = processor.chat_template  # older checkpoints keep it in a file of its own
    return processor


def _refuse_random_weights(name: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    parameters = dict(model.named_parameters())
    lacking = sorted(key for key in report["missing_keys"] if key.removesuffix(SCALES) in parameters)
    misfit = sorted(key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"])
    problems = [
        f"the checkpoint of {name!r} {what} {len(keys)} of the model's weights ({some_of(keys)}), which would be left "
        "random; give a checkpoint made for its config.json"
        for what, keys in (("lacks", lacking), ("has other shapes for", misfit))
        if keys
    ]
    if problems:
        raise RequestError(problems)


def _unloadable(name: str, error: BaseException) -> RequestError:
    return RequestError(f"{name!r} cannot be loaded ({one_line(error)}); {INSTEAD}")


def _nearest(path: Path) -> str:
    """Return a phrase with similar names that exist, in the directory of `path` or that of the embedded model."""
    parent = path.parent
    near = []
    if parent.is_dir():
        names = [entry.name for entry in parent.iterdir()]
        near = [str(parent / match) for match in difflib.get_close_matches(path.name, names, n=3)]
    if difflib.get_close_matches(path.name.lower(), [EMBEDDED_NAME], cutoff=0.7):
        near.append(EMBEDDED_NAME)
    return f" (near: {', '.join(near)})" if near else ""
