"""How long the pairs of a run take on a GPU: operations over a rate that was measured, and bytes over a bandwidth.

Every pass over u tokens multiplies each of W weights once for each of them, and the head of V words those s that are
scored; attention of a completion token looks at all tokens before it. A pass forward counts one, backward by the inputs
one, backward by the weights one, and recomputing a layer is a pass forward. Between products every layer reads and
writes what it keeps for the backward pass over and over:

    seconds = passes ( 2 W u / rate + (2 H V s + attention) / rate_16 ) + TRAFFIC passes/3 u layer_bytes L / bandwidth

The rates are those of matrix products of a layer's sizes on an H200; of another GPU they are not known, and taken to be
the same share of what is published for it. With them thirteen cases measured on the H200 (8B in bfloat16, FP8 and
NF4, also with most layers recomputed; 1B with passes recorded; short and long pairs; reference stored) come out within
8 %. Rows of fewer tokens than fill a GPU take longer, and so do short kernels where the host is slow: not recorded, the
1B model took 44 % more than planned. Inputs in host memory, float32 and processors were not measured, and no time is
better than a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

from wishbone.planning.gpus import Gpu, known_gpus
from wishbone.planning.memory import MemoryPlan, layer_bytes
from wishbone.planning.model_shape import ModelShape

YARDSTICK = "H200"
TRAFFIC = 33.0
"""Times that a byte kept is read or written in the three passes with adapters, as measured with 8B and 1B."""
FULL_ROW = 4096
"""Tokens of a row from which on a GPU's time is that of its products."""


@dataclass(frozen=True)
class Work:
    """What a step computes.

    Attributes:
        tokens: of all rows.
        scored: those whose log-probability is asked for.
        contexts: for every token those that it looks at, added up.
        passes: forward and backward passes of the tokens, 3 with adapters and a reference that is computed.
        recomputed: further passes forward of layers, a fraction where some are kept.
    """

    tokens: float
    scored: float
    contexts: float
    passes: float
    recomputed: float = 0.0


def step_seconds(shape: ModelShape, plan: MemoryPlan, work: Work, gpu: Gpu) -> float | None:
    """Return the seconds of a step on one GPU, or None where nothing was measured that they could be derived from."""
    share = _share()
    half = gpu.fp16_tflops if plan.weights == "f16" else gpu.bf16_tflops
    if plan.weights == "nf4" and half is None:
        half = gpu.fp16_tflops
    if half is None or plan.weights == "f32" or plan.offload or plan.device != "cuda":
        return None
    rate = share * half * 1e12
    linear_rate = share * gpu.fp8_tflops * 1e12 if plan.weights == "fp8" and gpu.fp8_tflops else rate
    passes = work.passes + work.recomputed
    linear = 2 * (shape.linear_numbers + _expert_numbers(shape)) * work.tokens
    head = 2 * shape.hidden * shape.vocabulary * work.scored
    attention = 4 * shape.query * shape.layers * work.contexts
    traffic = TRAFFIC * passes / 3 * work.tokens * shape.layers * layer_bytes(shape, plan)
    return (
        passes * (linear / linear_rate + attention / rate)
        + work.passes * head / rate
        + traffic / (gpu.bandwidth_gbs * 1e9)
    )


def _share() -> float:
    """Of the published rate, what products of a layer's sizes were seen to reach."""
    gpu = known_gpus()[YARDSTICK]
    assert gpu.measured is not None and gpu.bf16_tflops is not None
    return gpu.measured.bf16_tflops / gpu.bf16_tflops


def _expert_numbers(shape: ModelShape) -> int:
    """Weights of the experts that a token goes to."""
    return shape.layers * shape.experts_used * 3 * shape.hidden * shape.expert_inner
