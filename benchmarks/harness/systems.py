"""The systems to measure: a trainer and the precision of its frozen weights, by name, with options.

    trl-bf16    unsloth-nf4    wishbone-nf4:token_budget=4096:checkpointing=True

`SYSTEMS` says what a name stands for; an option changes one setting of it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

Family = Literal["trl", "unsloth", "wishbone"]
Weights = Literal["f32", "bf16", "nf4", "fp8", "int8", "llm-int8"]


@dataclass(frozen=True)
class System:
    """A trainer, the precision of its frozen weights, and what differs from its defaults.

    Attributes:
        family: whose trainer.
        weights: precision of the frozen weights.
        style: code as written for TRL (a transformers model and `peft_config`) or for Unsloth (`FastLanguageModel`).
        liger: TRL with liger-kernel's layers.
        checkpointing: gradient checkpointing, as that style's code asks for it: None for the library's default,
            "unsloth" (Unsloth's style only) to move layer inputs to host memory.
        token_budget, activations, cuda_graphs: Wishbone's own settings; None for their defaults.
        apart: run policy and reference one after the other where one pass could compute both.
        plain: compute each prompt twice, as two sequences of the same rows with the same kernels.
        torch_scans: run recurrent layers in PyTorch, as where no kernel is right.
        most_lengths: row lengths that are recorded at most, where a short run would spend its time on recording.
        offload_embedding: keep the input embedding in host memory.
        in_place: make quantized random weights on the device, layer by layer, instead of reading a directory.
        warm_store: train once before, untimed, so that Wishbone finds the reference's log-probabilities stored.
        rounded: codes that 16-bit weights are rounded to when they are loaded ("fp8", "int8" or "nf4"), or None; what
            rounding weights does is then measured apart from arithmetic in codes.
        memory_gib: memory of the GPU that the process may take, in GiB; None for all of it.
        environment: environment variables that the library reads.
    """

    family: Family
    weights: Weights
    style: Literal["trl", "unsloth"] = "trl"
    liger: bool = False
    checkpointing: bool | str | None = None
    token_budget: int | None = None
    activations: str | None = None
    cuda_graphs: str | None = None
    apart: bool = False
    plain: bool = False
    torch_scans: bool = False
    most_lengths: int | None = None
    offload_embedding: bool = False
    in_place: bool = False
    warm_store: bool = False
    rounded: str | None = None
    memory_gib: float | None = None
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def needs_directory(self) -> bool:
        """Whether the model must be read from a directory, because it is quantized or changed while it is loaded."""
        return not self.in_place and (self.style == "unsloth" or self.weights not in ("f32", "bf16"))

    def chosen(self) -> dict[str, Any]:
        """Return what differs from the defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


SYSTEMS = {
    "trl-f32": System("trl", "f32"),
    "trl-bf16": System("trl", "bf16"),
    "trl-nf4": System("trl", "nf4"),
    "trl-fp8": System("trl", "fp8"),
    "trl-liger-bf16": System("trl", "bf16", liger=True),
    "trl-liger-nf4": System("trl", "nf4", liger=True),
    "unsloth-bf16": System("unsloth", "bf16", "unsloth", checkpointing="unsloth"),
    "unsloth-bf16-fused": System(
        "unsloth",
        "bf16",
        "unsloth",
        checkpointing="unsloth",
        environment=(("UNSLOTH_FUSED_PREFERENCE_LOSS", "1"),),  # off by default there
    ),
    "unsloth-nf4": System("unsloth", "nf4", "unsloth", checkpointing="unsloth"),
    "unsloth-fp8": System("unsloth", "fp8", "unsloth", checkpointing="unsloth"),
    "wishbone-f32": System("wishbone", "f32"),
    "wishbone-bf16": System("wishbone", "bf16"),
    "wishbone-recompute": System("wishbone", "bf16", activations="recompute"),
    "wishbone-plain": System("wishbone", "bf16", plain=True),
    "wishbone-torch-scans": System("wishbone", "bf16", torch_scans=True),
    "wishbone-fp8": System("wishbone", "fp8", "unsloth", checkpointing=False),
    "wishbone-int8": System("wishbone", "int8", "unsloth", checkpointing=False),
    "wishbone-llm-int8": System("wishbone", "llm-int8", "unsloth", checkpointing=False),
    "wishbone-nf4": System("wishbone", "nf4", "unsloth", checkpointing=False),
    "wishbone-nf4-14gib": System("wishbone", "nf4", memory_gib=14.3),
    "wishbone-nf4-small": System(
        "wishbone", "nf4", "unsloth", checkpointing="unsloth", token_budget=2048, offload_embedding=True
    ),
    "wishbone-stored": System("wishbone", "bf16", warm_store=True),
    # what a long run chooses by itself where the host is slow
    "wishbone-recorded": System("wishbone", "bf16", cuda_graphs="on"),
    "wishbone-fp8-recorded": System("wishbone", "fp8", "unsloth", checkpointing=False, cuda_graphs="on"),
    "wishbone-int8-recorded": System("wishbone", "int8", "unsloth", checkpointing=False, cuda_graphs="on"),
}

WISHBONE_OPTIONS = (
    "token_budget", "activations", "cuda_graphs", "apart", "plain", "torch_scans", "most_lengths", "offload_embedding",
    "warm_store", "rounded",
)  # fmt: skip
OPTIONS = ("style", "checkpointing", "in_place", *WISHBONE_OPTIONS, "memory_gib")


def parse_system(text: str) -> System:
    """Return the system that `NAME[:OPTION=VALUE]...` describes.

    Raises:
        ValueError: no such name or option, or an option that belongs to Wishbone.
    """
    name, *options = text.split(":")
    if name not in SYSTEMS:
        raise ValueError(f"system {name!r} is not known: choose one of {', '.join(SYSTEMS)}")
    system = SYSTEMS[name]
    changes: dict[str, Any] = {}
    for option in options:
        key, given, value = option.partition("=")
        if key not in OPTIONS or not given:
            raise ValueError(f"system {text!r}: {option!r} is not OPTION=VALUE with an option of {', '.join(OPTIONS)}")
        if key in WISHBONE_OPTIONS and system.family != "wishbone":
            raise ValueError(f"system {text!r}: {key} is an option of Wishbone's systems")
        changes[key] = _value(value)
    return replace(system, **changes)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
