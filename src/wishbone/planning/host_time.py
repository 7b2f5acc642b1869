"""Seconds of the host for the rows of a step; a GPU that is faster waits for it.

    host = rows L ( LAYER + AGAIN recomputed + recurrent / L scan.host + PARAMETER n if the model is divided )

The host launches some hundred kernels for each layer of a row, whatever its length, and FSDP handles each of a divided
layer's n parameters twice. Measured beside H200s (row-times-h200.json, hybrids, and FP8 divided over two of them); the
hosts of some machines take 1.6 times as long. Passes that are recorded as CUDA graphs need none of it: training records
them, in runs long enough, where an adapter is trained and all activations are kept.
"""

from __future__ import annotations

from wishbone.planning.memory import EIGHT_BITS, MemoryPlan, adapted
from wishbone.planning.model_shape import ModelShape

LAYER = 0.010
"""Of a layer of policy and reference in one pass, forward and backward: 8 to 11 ms in rows of 640 to 2,560 tokens."""
AGAIN = 0.005
"""Of a layer that is recomputed, beside that: LFM2's rows took 15.7 ms a layer."""
PARAMETER = 0.00047
"""Of a parameter of a divided layer: with FP8's 30 a layer of 8B took 24.6 ms, kept, where the GPU needs 16."""


def host_seconds(
    shape: ModelShape, plan: MemoryPlan, rows: float, recomputed: float, *, offload: bool, divided: bool
) -> float:
    """Return the seconds that a step takes at least because of its host; 0 where passes are recorded.

    Args:
        shape: of the model.
        plan: of the run.
        rows: of a step on one device.
        recomputed: share of the layers that run forward once more.
        offload: whether inputs wait in host memory.
        divided: whether FSDP2 divides the model over devices.
    """
    recorded = plan.method == "lora" and not (recomputed or offload or divided or shape.recurrent)
    if plan.device != "cuda" or recorded:
        return 0.0
    layer = LAYER + AGAIN * recomputed + shape.recurrent / shape.layers * shape.scan.host
    if divided:
        layer += PARAMETER * _parameters(shape, plan)
    return rows * shape.layers * layer


def _parameters(shape: ModelShape, plan: MemoryPlan) -> float:
    """Parameters of a layer as FSDP counts them: weights, with their scales in 8 bits, factors of adapters, norms."""
    weights = sum(linear.count for linear in shape.linears) * (2 if plan.weights in EIGHT_BITS else 1)
    factors = 2 * sum(linear.count for linear in adapted(shape, plan)) if plan.method == "lora" else 0
    return (weights + factors) / shape.layers + shape.norms
