"""What the rules read: a situation, what its GPU can do, and the memory that its model would take.

Two rows are estimated: the longest pair alone with every layer recomputed (`least_*_gib`, the least that a step needs),
and 8,192 tokens, or the longest pair if that is longer, with everything kept (`roomy_*_gib`). With p and c the median
tokens of prompt and completion, share = c / (p + c), and n tokens of the longest sequence:

    longest pair     n (1 + share) tokens, 2 n share of them scored
    full row         max(8192, longest pair) tokens, 2 c / (p + 2 c) of them scored
    gib(bytes)       floor(100 bytes / 2^30 + 1/2) / 100

Adapters have rank 16. bfloat16 begins at compute capability 8.0, FP8 at 8.9, int8 at 7.5.
"""

from __future__ import annotations

import math
from typing import Any

from wishbone.planning.gpus import BF16_FROM, FP8_FROM, INT8_FROM, Gpu
from wishbone.planning.memory import GIB, MemoryPlan, Weights, estimate_memory
from wishbone.planning.model_shape import ModelShape
from wishbone.planning.situation import Situation

FULL_ROW = 8192
FILE_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
LEAST: tuple[Weights, ...] = ("f32", "f16", "bf16", "fp8", "int8", "nf4")
ROOMY: tuple[Weights, ...] = ("bf16", "fp8", "int8", "nf4")


def facts_of(
    situation: Situation, shape: ModelShape, *, gpu: Gpu | None = None, gpu_memory: float = 0.0
) -> dict[str, Any]:
    """Return all facts that the rules name.

    Args:
        situation: the answers.
        shape: of the model.
        gpu: None without one.
        gpu_memory: of one GPU in GiB; 0 without a GPU.
    """
    capability = 0.0 if gpu is None else gpu.capability
    bf16 = capability >= BF16_FROM
    return {
        **situation.model_dump(),
        "data_format": data_format(situation.data),
        "has_gpu": gpu_memory > 0,
        "gpu_memory": gpu_memory,
        "capability": capability,
        "bf16": bf16,
        "fp8": capability >= FP8_FROM,
        "int8": capability >= INT8_FROM,
        "int8_over_fp8": 0.0 if gpu is None else gpu.int8_over_fp8,
        "model_billion": _hundredths(shape.parameters / 1e9),
        **memory_facts(situation, shape, gpu_memory=gpu_memory, bf16=bf16),
    }


def data_format(data: str) -> str:
    """Return the loader of `datasets` for a file by the end of its name, "hub" for anything else."""
    name = data.lower()
    return next((form for suffix, form in FILE_FORMATS.items() if name.endswith(suffix)), "hub")


def memory_facts(situation: Situation, shape: ModelShape, *, gpu_memory: float, bf16: bool) -> dict[str, float]:
    """Return the memory facts in GiB."""
    prompt, completion = situation.prompt_tokens, situation.completion_tokens
    share = completion / (prompt + completion)
    longest = situation.longest_tokens * (1 + share)
    scored = 2 * situation.longest_tokens * share
    row = max(FULL_ROW, longest)
    row_scored = row * (2 * completion) / (prompt + 2 * completion)
    separate = situation.reference == "given" and situation.reference_model != situation.model
    common: dict[str, Any] = {
        "reference": "separate" if separate else "stored" if situation.method == "full" else "none",
        "device": "cuda" if gpu_memory > 0 else "cpu",
        **({"device_memory": gpu_memory * GIB} if gpu_memory > 0 else {}),
    }

    def gib(weights: Weights, **plan: Any) -> float:
        return _hundredths(estimate_memory(shape, MemoryPlan(weights=weights, **common, **plan)).total / GIB)

    least = {"row_tokens": longest, "scored_tokens": scored, "kept_layers": 0}
    roomy = {"row_tokens": row, "scored_tokens": row_scored}
    return {
        **{f"least_{weights}_gib": gib(weights, **least) for weights in LEAST},
        "least_full_gib": gib("bf16" if bf16 else "f32", method="full", **least),
        **{f"roomy_{weights}_gib": gib(weights, **roomy) for weights in ROOMY},
    }


def _hundredths(number: float) -> float:
    return math.floor(100 * number + 0.5) / 100
