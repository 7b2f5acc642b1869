"""The memory that `wishbone plan` estimates, beside the peak that training has, for each form and budget.

A process loads one model in one form of weights. It trains a few steps for every token budget and every treatment of
activations, on pairs that fill two rows a step to the last token. Peaks are those of PyTorch's allocator: over the
steps after the first, over the whole run with its profiling, and within the parts of a step.

Without a GPU nothing counts memory, so the benchmark only shows that it runs.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.harness.results import Row
from benchmarks.harness.systems import System, parse_system
from benchmarks.harness.workloads import SIZES, Lengths, texts
from benchmarks.rendering.tables import show

if TYPE_CHECKING:
    from benchmarks.harness.worker import Progress

ROWS_A_STEP, STEPS = 2, 3
PAIR_TOKENS = 1024
"""Tokens of a pair at most: a quarter of them prompt, the rest its two completions."""
TREATMENTS = ("keep", "recompute", "offload")
GIB = 2**30


def pair_of(budget: int) -> Lengths:
    """Return a pair such that an even number of them fills a row of `budget` tokens."""
    tokens = min(PAIR_TOKENS, budget // 4)
    completion = tokens * 3 // 8
    return Lengths(tokens - 2 * completion, completion, completion)


def measure(request: dict[str, Any], progress: Progress) -> Row:
    """Load the model and train with every budget and treatment (in the child)."""
    import torch

    from benchmarks.harness.loading import device_of
    from benchmarks.harness.memory_watch import allocated_gib, peak_gib

    system = parse_system(request["system"])
    device = device_of(system)
    progress.phase("loading the model")
    model, tokenizer = _load(system, request, device)
    found: Row = {
        "method": request["method"],
        "after_load_gib": allocated_gib(),
        "load_peak_gib": peak_gib(),
        "measurements": [],
    }
    for budget in request["budgets"]:
        for treatment in request["treatments"]:
            progress.phase(f"{treatment}, rows of {budget} tokens")
            try:
                one, model = _trained(system, request, device, model, tokenizer, budget, treatment)
            except torch.OutOfMemoryError as error:
                found["out_of_memory"] = f"{treatment}, {budget}: {str(error)[:200]}"
                return found
            found["measurements"].append(one)
            progress.write(partial=found)
    errors = [abs(one[key]) for one in found["measurements"] for key in ("error", "run_error") if one[key] is not None]
    return found | {"largest_error": max(errors, default=None)}


def _load(system: System, request: dict[str, Any], device: Any) -> tuple[Any, Any]:
    import torch

    from benchmarks.harness.random_model import random_model, random_tokenizer
    from wishbone.model.load import load_model

    if request.get("directory"):
        return load_model(
            request["directory"],
            device=device,
            load_in_4bit=system.weights == "nf4",
            load_in_fp8=system.weights == "fp8",
            load_in_rotated_int8=system.weights == "int8",
        )
    dtype = torch.float32 if system.weights == "f32" else torch.bfloat16
    return random_model(request["size"], dtype, device), random_tokenizer(request["size"])


def _trained(
    system: System, request: Row, device: Any, model: Any, tokenizer: Any, budget: int, treatment: str
) -> tuple[Row, Any]:
    """Train a few steps; return measurements beside estimates, and the model without its adapter."""
    import copy
    import gc

    import torch
    from peft import LoraConfig

    from benchmarks.harness.loading import LINEARS, RANK, Loaded, trainer_for
    from benchmarks.harness.memory_watch import MemoryWatch, allocated_gib, reset_peak

    pair = pair_of(budget)
    pairs = ROWS_A_STEP * budget // pair.unique
    watch = MemoryWatch()
    reset_peak()
    adapter = LoraConfig(
        r=request["rank"], lora_alpha=RANK, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM"
    )
    lora = request["method"] == "lora"
    trainer = trainer_for(
        system,
        Loaded(model, tokenizer, {"peft_config": adapter} if lora else {"ref_model": copy.deepcopy(model)}),
        device,
        request["scratch"],
        texts([pair] * (pairs * STEPS), SIZES[request["size"]].vocabulary),
        callbacks=[watch],
        per_device_train_batch_size=pairs,
        max_steps=STEPS,
        token_budget=budget,
        activations=treatment,
        optim=request["optimizer"],
        reference_store="off",  # otherwise only the first training would compute the reference
    )
    with_adapter = allocated_gib()
    watch.attach(trainer)
    trainer.train()
    one = {"budget": budget, "activations": treatment, "adapter_gib": with_adapter, **watch.found()}
    one |= _estimated(trainer, system, budget, treatment, pair, one)
    bare = trainer.model.unload() if lora else trainer.model
    del trainer, watch
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return one, bare


def _estimated(trainer: Any, system: System, budget: int, treatment: str, pair: Lengths, measured: Row) -> Row:
    """Return the planner's items and totals for the same rows."""
    import torch

    from wishbone.planning.memory import MemoryPlan, estimate_memory
    from wishbone.planning.model_shape import read_shape

    shape = read_shape(trainer.model.config.to_dict())
    trained = next(p for p in trainer.model.parameters() if p.requires_grad)
    cuda = trained.is_cuda
    adapters = getattr(trainer.model, "peft_config", {})
    common: dict[str, Any] = {
        "row_tokens": budget,
        "method": "lora" if adapters else "full",
        "rank": adapters["default"].r if adapters else 0,
        "reference": "none" if adapters else "separate",
        "kept_layers": None if treatment == "keep" else 0,
        "offload": treatment == "offload",
        "device": "cuda" if cuda else "cpu",
        "optimizer": trainer.args.optim,
        "adapter_bytes": trained.element_size(),
        "device_memory": torch.cuda.get_device_properties(0).total_memory if cuda else 0.0,
    }
    scored = budget // pair.unique * pair.scored
    assert system.weights != "llm-int8"  # a library's form, which no plan covers
    step = estimate_memory(shape, MemoryPlan(system.weights, scored_tokens=scored, **common))
    run = estimate_memory(shape, MemoryPlan(system.weights, **common))
    estimate = step.allocated / GIB
    return {
        "estimate_gib": round(estimate, 3),
        "run_estimate_gib": round(run.allocated / GIB, 3),
        "error": _error(estimate, measured["peak_gib"]),
        "run_error": _error(run.allocated / GIB, measured["run_peak_gib"]),
        "items_gib": {name: round(value / GIB, 3) for name, value in step.items.items()},
        "trained_dtype": str(trained.dtype).removeprefix("torch."),
    }


def _error(estimate: float, measured: float) -> float | None:
    """Return the relative difference, or None where nothing was measured."""
    return round(estimate / measured - 1, 4) if measured else None


def job(weights: str, size: str, limit_seconds: float, **settings: Any) -> Job:
    """Return the job of one form of weights; `settings` are those of `main`."""
    case = " ".join(",".join(map(str, value)) if isinstance(value, list) else str(value) for value in settings.values())
    return Job("plan", f"wishbone-{weights}", size, case, settings, limit_seconds=limit_seconds, expected_seconds=30)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1b,8b", help="shapes of the random model, by commas")
    parser.add_argument("--weights", default="bf16,nf4,fp8", help="forms of the frozen weights, by commas")
    parser.add_argument("--budgets", default="4096,8192,16384", help="tokens of a row, by commas")
    parser.add_argument("--activations", default="keep,recompute,offload", help="treatments, by commas")
    parser.add_argument("--method", choices=("lora", "full"), default="lora", help="full: beside a frozen copy")
    parser.add_argument("--optimizer", default="adamw_torch")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--limit-seconds", type=float, default=240, help="time for one size and form")
    jobs.add_options(parser)
    options = parser.parse_args()
    sizes, treatments = options.sizes.split(","), options.activations.split(",")
    budgets = [int(text) for text in options.budgets.split(",") if text.isdecimal()]
    unknown = [text for text in treatments if text not in TREATMENTS] + [text for text in sizes if text not in SIZES]
    if unknown or not budgets or any(budget < 64 or budget % 64 for budget in budgets):
        parser.error(f"{', '.join(unknown) or options.budgets}: unknown, and budgets are multiples of 64")
    chosen = {"budgets": budgets, "treatments": treatments, "method": options.method}
    chosen |= {"optimizer": options.optimizer, "rank": options.rank}
    try:
        for weights in options.weights.split(","):
            parse_system(f"wishbone-{weights}")
    except ValueError as error:
        parser.error(str(error))
    planned = [
        job(weights, size, options.limit_seconds, **chosen) for size in sizes for weights in options.weights.split(",")
    ]
    show(run_jobs(planned, options), "plan")
