"""A model that FSDP2 shards over several processes (gloo, CPU) is trained as in one process that has all of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, DistributedType
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import tiny_tokenizer

from trainer.preference_runs import arguments, chat_pairs, model_for
from wishbone import DPOConfig, DPOTrainer

TESTS = Path(__file__).parent.parent
FSDP = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True}
RUNS: dict[str, dict[str, Any]] = {
    "batches that do not divide": {
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 2,
    },
    "a coupled loss, a process without work": {
        "loss_type": "aot",
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
    },
    "a mixture's auxiliary loss": {"family": "mixtral", "max_steps": 2},
    "all weights": {"full": True, "max_steps": 2, "learning_rate": 1e-3},
    "fused, in one pass": {"dtype": torch.bfloat16, "max_steps": 2, "learning_rate": 1e-3},
}


def shard_on_the_cpu() -> None:
    """Have accelerate keep its plugin for FSDP, which it takes on accelerators alone."""
    constructed = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        constructed(self, *args, **kwargs)
        if kwargs.get("fsdp_plugin") is not None:
            self.fsdp_plugin = kwargs["fsdp_plugin"]
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = init


def trained(folder: Path, settings: dict[str, Any], *, sharded: bool, resume: str | None = None) -> Any:
    tokenizer, settings = tiny_tokenizer(), dict(settings)
    family, full = settings.pop("family", "llama"), settings.pop("full", False)
    model = model_for(tokenizer, family).to(settings.pop("dtype", torch.float64))
    if family == "mixtral":
        model.config.output_router_logits, model.config.router_aux_loss_coef = True, 0.5
    if sharded:
        settings |= {"fsdp": True, "fsdp_config": dict(FSDP)}
    data = Dataset.from_list(list(chat_pairs(11)))
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            **arguments(folder, **{"gradient_accumulation_steps": 2, **settings}), shared_steps=True, token_budget=100
        ),
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=tokenizer,
        **({} if full else {"peft_config": LoraConfig(r=4, target_modules="all-linear")}),
    )
    assert trainer.form_reason is None
    assert trainer.preference_step is not None and trainer.preference_step.policy.sharded is sharded
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def result(trainer: Any) -> dict[str, Any]:
    named = sorted((name, p.detach()) for name, p in trainer.model.named_parameters() if p.requires_grad)
    values = [(p.full_tensor() if hasattr(p, "full_tensor") else p).flatten().double() for _, p in named]
    return {"weights": torch.cat(values), "log": trainer.state.log_history, "pairs": trainer.trained_pairs}


def worker(folder: Path, names: list[str], resume: bool) -> None:
    shard_on_the_cpu()
    results: dict[str, Any] = {}
    for name in names:
        trainer = trained(folder / "run", RUNS[name], sharded=True)
        if name.startswith("fused"):
            assert trainer.preference_step.reference.in_lockstep and trainer.coverage is not None
        results[name] = result(trainer)
    saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    if names:
        trained(folder / "saved", saved | {"max_steps": 2, "full": True, "learning_rate": 1e-3}, sharded=True)
        trained(folder / "adapter", saved | {"max_steps": 2}, sharded=True)
    if resume:
        results["resumed"] = result(
            trained(folder / "adapter", saved, sharded=True, resume=str(folder / "adapter" / "checkpoint-2"))
        )
    if int(os.environ["RANK"]) == 0:
        torch.save(results, folder / "r")
    torch.distributed.barrier()
    os._exit(0)


def of_processes(count: int, folder: Path, names: list[str], *, resume: bool) -> dict[str, Any]:
    """What the first of several processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "ACCELERATE_USE_CPU": "true"}
    command = [
        sys.executable,
        "-c",
        f"from trainer.test_sharded_processes import *; worker(Path({str(folder)!r}), {names}, {resume})",
    ]
    processes = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(count)
    ]
    try:
        errors = [process.communicate(timeout=400)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)[-3000:]
    found: dict[str, Any] = torch.load(folder / "r", weights_only=True)
    return found


def is_the_run_of_one(several: dict[str, Any], folder: Path, settings: dict[str, Any]) -> None:
    one = result(trained(folder, settings, sharded=False))
    exact = settings.get("dtype") is None
    assert several["pairs"] == one["pairs"]
    assert (several["weights"] - one["weights"]).norm() <= (1e-9 if exact else 1e-3) * one["weights"].norm()
    assert len(several["log"]) == len(one["log"])
    for mine, other in zip(several["log"], one["log"], strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen", "grad_norm", "eval_loss", "eval_rewards/margins"):
            if name in other:
                near = {"rel": 1e-6, "abs": 1e-9} if exact else {"rel": 5e-2, "abs": 5e-2}
                assert float(mine[name]) == pytest.approx(float(other[name]), **near), name


@pytest.mark.long
def test_sharded_over_two_and_three_processes(tmp_path: Path) -> None:
    found = of_processes(2, tmp_path, list(RUNS), resume=False)
    for name, settings in RUNS.items():
        is_the_run_of_one(found[name], tmp_path / "one", settings)
    weights = load_file(tmp_path / "adapter" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(weight.ndim == 2 and weight.numel() for weight in weights.values())
    whole = load_file(tmp_path / "saved" / "checkpoint-2" / "model.safetensors")
    assert {name for name, _ in model_for(tiny_tokenizer()).named_parameters()} >= set(whole)
    resumed = of_processes(3, tmp_path, [], resume=True)["resumed"]
    one = result(trained(tmp_path / "one", {"max_steps": 4}, sharded=False))
    assert (resumed["weights"] - one["weights"]).norm() <= 1e-6 * one["weights"].norm()


@pytest.mark.long
def test_three_processes(tmp_path: Path) -> None:
    names = ["batches that do not divide", "a coupled loss, a process without work"]
    found = of_processes(3, tmp_path, names, resume=False)
    for name in names:
        is_the_run_of_one(found[name], tmp_path / "one", RUNS[name])
