"""Seconds of a step on a GPU: operations over a measured rate, and bytes over a bandwidth.

A pass over u tokens multiplies each of W weights once a token, and a head of V words once for each of the s scored
tokens; a completion token attends to all tokens before it. A forward pass counts one, the backward pass one for the
gradients of inputs and one for those of weights; recomputing a layer is a forward pass. Between products every layer
reads and writes what it keeps for the backward pass many times, and the head's logits are written and read:

    seconds = passes ( 2 W u / rate + (2 H V s + attention) / rate_16 )
            + ( TRAFFIC passes/3 u layer_bytes L + LOGITS passes V s ) / bandwidth

Experts multiply in 16 bits in whatever form they are kept, and move bytes of their own (`expert_time.py`).

The rates are those of matrix products of a layer's sizes on an H200. For another GPU they are estimated as the same
share of its published rate; for int8 that of our kernel. Thirteen cases measured on the H200 (8B in bfloat16, FP8 and
NF4, also with most layers recomputed; 1B with CUDA graphs; short and long pairs; a stored reference) agree within 8 %.
Rows too short to keep the host ahead of a GPU take longer where their passes are not recorded (`host_time.py`): without
CUDA graphs the 1B model took 44 % longer than planned. Scans of recurrent layers move bytes of their own. Inputs in
host memory, float32 and processors were not measured, so no time is given for them.
"""

from __future__ import annotations

from wishbone.planning.expert_time import expert_seconds, kept_of_experts
from wishbone.planning.gpus import Gpu, known_gpus
from wishbone.planning.memory import MemoryPlan, layer_bytes
from wishbone.planning.model_shape import ModelShape
from wishbone.planning.work import Work

YARDSTICK = "H200"
TRAFFIC = 33.0
"""How often each kept byte is read or written in the three passes with adapters, measured with 8B and 1B models."""
TOWER = 0.45
"""Share of the rate of products that a tower reaches in its own layers: 34.8 TFLOP of Qwen3-VL-4B's took 0.114 s."""
SCAN_TRAFFIC = 13.7
"""How often what a scan's kernels hold is read or written in the three passes: a layer of Granite 4's shape took 1.1 ms
forward and 5.6 ms with the backward pass over 14,290 tokens on an H200. The delta rule's kernels were not timed."""
LOGITS = 6
"""Bytes of a scored logit that a pass moves: 4 written and 4 read by the reference, 10 by the policy in two passes."""
FULL_ROW = 4096
"""Shortest row, in tokens, that fills a GPU, so that its time is that of the products."""


def step_seconds(shape: ModelShape, plan: MemoryPlan, work: Work, gpu: Gpu) -> float | None:
    """Return the seconds of a step on one GPU, or None where nothing was measured to derive them from."""
    share = _share()
    half = gpu.fp16_tflops if plan.weights == "f16" else gpu.bf16_tflops
    if plan.weights in ("nf4", "int8") and half is None:
        half = gpu.fp16_tflops
    if half is None or plan.weights == "f32" or plan.offload or plan.device != "cuda":
        return None
    rate = share * half * 1e12
    linear_rate = rate
    if plan.weights == "fp8" and gpu.fp8_tflops:
        linear_rate = share * gpu.fp8_tflops * 1e12
    if plan.weights == "int8" and gpu.int8_tflops:
        linear_rate = _int8_share() * gpu.int8_tflops * 1e12
    passes = work.passes + work.recomputed
    bandwidth = gpu.bandwidth_gbs * 1e9
    linear = 2 * shape.linear_parameters * work.tokens
    head = 2 * shape.hidden * shape.vocabulary * work.scored
    attention = 4 * shape.query * shape.attending * work.contexts
    kept = layer_bytes(shape, plan) - kept_of_experts(shape, plan)
    traffic = TRAFFIC * passes / 3 * work.tokens * shape.layers * kept
    traffic += SCAN_TRAFFIC * passes / 3 * work.tokens * shape.recurrent * 4 * shape.scan.held
    traffic += LOGITS * work.passes * shape.vocabulary * work.scored
    return (
        passes * (linear / linear_rate + attention / rate)
        + (work.passes * head + work.tower / TOWER) / rate
        + expert_seconds(shape, plan, work, rate, bandwidth)
        + traffic / bandwidth
    )


def _share() -> float:
    """Share of the published rate that products of a layer's sizes reached."""
    gpu = known_gpus()[YARDSTICK]
    assert gpu.measured is not None and gpu.bf16_tflops is not None
    return gpu.measured.bf16_tflops / gpu.bf16_tflops


def _int8_share() -> float:
    """Share of the published int8 rate that such products reached."""
    gpu = known_gpus()[YARDSTICK]
    assert gpu.measured is not None and gpu.measured.int8_tflops is not None and gpu.int8_tflops is not None
    return gpu.measured.int8_tflops / gpu.int8_tflops
