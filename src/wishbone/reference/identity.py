"""A hash of everything that the reference's log-probabilities depend on.

A value computed earlier may stand in for one computed now if everything that decides it is the same: every weight that
the reference runs through, the code that runs it, and the arithmetic of the machine. `reference_identity` is the
SHA-256 of all of that:

- the tensors of `weights.py`: names, shapes, dtypes, bytes;
- the model's configuration, without what is cosmetic;
- the classes of the modules and the versions of the libraries they come from, or their source where there is no
  version (layers of this package are such classes), and the functions that these libraries' code calls by name, which
  a program may have put others in the place of;
- the source of this package's code that a reference pass enters (`SCORING_CODE`);
- the form that pairs are run in, whether layers are fused, the attention implementation, autocast, the device.

What is trained does not count, nor do learning rate, beta, seed or file names. How a model was read, quantized or
converted does not count either: that decides the weights, which are hashed by value. A frozen LoRA adapter with a
factor of zero adds nothing and is left out, so that fresh adapters of any seed and rank share the base model's values.

Tensors are hashed on their device (`tensor_hash.py`): that guards against accidents, not against forgery.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from wishbone.policy.policy import Policy
from wishbone.reference.tensor_hash import tensor_hashes
from wishbone.reference.weights import AdapterLayer, adapter_layers, base_tensors, reference_modules

COSMETIC = frozenset(
    {
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "architectures",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "use_cache",
    }
)
"""Fields of a model's configuration that decide no value; classes and dtypes are known from the model itself."""

COSMETIC_OF_ADAPTER = frozenset(
    {"base_model_name_or_path", "revision", "inference_mode", "task_type", "auto_mapping", "peft_version"}
)
SCORING_CODE = (
    "data/batch.py",
    "data/pair_images.py",
    "fused",
    "model/vision_positions.py",
    "ops",
    "policy",
    "preference",
    "reference",
)
"""Folders and files of this package that decide a log-probability; tests check them against what a pass enters."""

Autocast = Callable[[], AbstractContextManager[None]]


def reference_identity(policy: Policy, adapters: Sequence[str] = (), *, autocast: Autocast = nullcontext) -> str:
    """Return the hash of everything that decides the log-probabilities of a reference, in hexadecimal.

    Args:
        policy: runs the reference; its model is a PEFT model or a causal language model.
        adapters: frozen adapters that are on in the reference; none means the model without adapter.
        autocast: context of the reference's forward pass.
    """
    config, model = policy.causal_lm.config, policy.causal_lm
    base, layers = base_tensors(model, adapters), list(adapter_layers(model, adapters))
    tensors = base | {f"{x.name} {x.adapter} {key}": tensor for x in layers for key, tensor in x.tensors.items()}
    once = list({id(tensor): tensor for tensor in tensors.values()}.values())
    hashes = {id(tensor): row for tensor, row in zip(once, tensor_hashes(once), strict=True)}
    layers = [layer for layer in layers if not _adds_nothing({k: any(hashes[id(t)]) for k, t in layer.tensors.items()})]
    counted = base | {f"{x.name} {x.adapter} {key}": tensor for x in layers for key, tensor in x.tensors.items()}
    facts = {
        "tensors": {name: [list(t.shape), str(t.dtype), *hashes[id(t)]] for name, t in counted.items()},
        "adapters": _adapter_facts(policy.model, layers),
        "config": plain_configuration(config.to_dict(), COSMETIC),
        "modules": sorted({_kind(module) for _, module in reference_modules(model, adapters)}),
        "functions": _functions({type(module).__module__ for _, module in reference_modules(model, adapters)}),
        "code": scoring_code(),
        "form": [policy.form, "fused" if policy.fused else "as it is"],
        "attention": config._attn_implementation,
        "numerics": _numerics(policy.device, autocast),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _adds_nothing(nonzero: dict[str, bool]) -> bool:
    """Whether a layer's adapter is LoRA with a zero factor, given which of its tensors have a hash other than zero."""
    factors = {"A": False, "B": False}
    for key, is_nonzero in nonzero.items():
        match key.split("."):
            case ["lora_A" | "lora_embedding_A", *_]:
                factors["A"] |= is_nonzero
            case ["lora_B" | "lora_embedding_B", *_, last]:
                factors["A"] |= last == "bias"  # a bias is added whatever A is
                factors["B"] |= is_nonzero
            case _:
                return False
    return not all(factors.values())


def _adapter_facts(model: nn.Module, layers: list[AdapterLayer]) -> dict[str, Any]:
    """Scales and configurations of adapters that add something."""
    if not layers:
        return {}
    assert isinstance(model, PeftModel)
    used = {layer.adapter for layer in layers}
    return {
        "scales": {f"{layer.name} {layer.adapter}": layer.scale for layer in layers},
        "configs": {name: plain_configuration(model.peft_config[name].to_dict(), COSMETIC_OF_ADAPTER) for name in used},
    }


def plain_configuration(value: Any, cosmetic: frozenset[str]) -> Any:
    """Return a configuration in JSON's values, sets sorted, without its cosmetic fields at every depth."""
    if isinstance(value, dict):
        return {str(key): plain_configuration(inner, cosmetic) for key, inner in value.items() if key not in cosmetic}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return [plain_configuration(inner, cosmetic) for inner in value] if isinstance(value, list | tuple) else value


def _kind(module: nn.Module) -> str:
    """A module's class, its forward pass (which may be another's), and the versions of their code."""
    code: list[Any] = [type(module), module.forward]
    names = [f"{part.__module__}.{part.__qualname__}" for part in code]
    return " ".join([*names, *sorted({_code_version(part.__module__) for part in code})])


def _functions(modules: set[str]) -> list[str]:
    """Functions in the namespaces of Python modules: name, place of the code, and its version.

    The place is that of the code that runs, which a decorator from elsewhere changes although the name stays. What
    comes from the standard library or from this package is left out: `SCORING_CODE` and the form tell of the latter.
    """
    elsewhere = sys.stdlib_module_names | {__name__.partition(".")[0]}
    found = set()
    for module in modules & sys.modules.keys():
        for name, function in vars(sys.modules[module]).items():
            source = str(function.__globals__.get("__name__")) if isinstance(function, FunctionType) else ""
            if source and source.partition(".")[0] not in elsewhere:
                found.add(f"{module}.{name}: {source}.{function.__code__.co_qualname} {_code_version(source)}")
    return sorted(found)


@cache
def _code_version(module: str) -> str:
    """Version of the distribution that a module is from, or else the hash of its source.

    Code that has neither, in a notebook say, is like no other: it counts as new in every process.
    """
    package = module.partition(".")[0]
    if package != __name__.partition(".")[0]:  # of this package the source says more than the version
        with suppress(PackageNotFoundError):
            return f"{package} {version(package)}"
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return f"{module} {secrets.token_hex()}"
    return f"{module} {hashlib.sha256(source.encode()).hexdigest()}"


@cache
def scoring_code(package: Path = Path(__file__).parent.parent) -> str:
    """Return the hash of the sources in `SCORING_CODE`, of this package or a copy of it."""
    places = [package / entry for entry in SCORING_CODE]
    files = [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _installed(distribution: str) -> str:
    """Version of a library, "none" where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"


def _numerics(device: torch.device, autocast: Autocast) -> dict[str, str]:
    """What the same code and weights compute differently with."""
    backends: Any = torch.backends
    kind = device.type
    if kind == "cuda":
        where = f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)} {torch.version.cuda}"
    else:
        where = backends.cpu.get_cpu_capability() if kind == "cpu" else ""
    with autocast():
        lowered = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "none"
    return {
        "device": f"{kind} {where}",
        "autocast": lowered,
        "float32 products": (backends.cuda if kind == "cuda" else backends.mkldnn).matmul.fp32_precision,
        "libraries": " ".join(f"{name} {_installed(name)}" for name in ("torch", "transformers", "peft", "triton")),
    }
