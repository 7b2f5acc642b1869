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
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from torch import nn
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor import DTensor

from trainer.preference_runs import arguments, chat_pairs, model_for
from wishbone import DPOConfig, DPOTrainer
from wishbone.model.load import load_model

TESTS = Path(__file__).parent.parent
FSDP = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True}
RUNS: dict[str, dict[str, Any]] = {
    "batches that do not divide": {
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 1,
    },
    "a coupled loss, a process without work": {
        "loss_type": "aot",
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
    },
    "a mixture's auxiliary loss": {"family": "mixtral", "max_steps": 2},
    "all weights": {"full": True, "max_steps": 2, "learning_rate": 1e-3},
    "fused, in one pass": {"dtype": torch.bfloat16, "max_steps": 2, "learning_rate": 1e-3},
    "nf4": {"codes": "load_in_4bit", "max_steps": 2},
    "fp8": {"codes": "load_in_fp8", "max_steps": 2},
    "int8": {"codes": "load_in_rotated_int8", "max_steps": 2},
    "fused nf4": {"codes": "load_in_4bit", "dtype": torch.bfloat16, "max_steps": 2, "learning_rate": 1e-3},
    "fused fp8": {"codes": "load_in_fp8", "dtype": torch.bfloat16, "max_steps": 2, "learning_rate": 1e-3},
}
THREE = ("batches that do not divide", "a coupled loss, a process without work")


def trained(folder: Path, settings: dict[str, Any], *, sharded: bool, resume: str | None = None) -> Any:
    tokenizer, settings = tiny_tokenizer(), dict(settings)
    family, full = settings.pop("family", "llama"), settings.pop("full", False)
    dtype, codes = settings.pop("dtype", torch.float64), settings.pop("codes", None)
    model = model_for(tokenizer, family)
    if codes is None:
        model.to(dtype)
    else:
        model = in_codes(folder, codes, dtype)
    if family == "mixtral":
        model.config.output_router_logits, model.config.router_aux_loss_coef = True, 0.5
    if sharded:
        settings |= {"fsdp": True, "fsdp_config": dict(FSDP)}
    else:
        settings |= {"reference_store": "off"}  # which rounds what it keeps to float32; a sharded model has none
    data = Dataset.from_list(list(chat_pairs(11)))
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            **arguments(folder, **{"gradient_accumulation_steps": 2, **settings}), shared_steps=True, token_budget=100
        ),
        train_dataset=data,
        eval_dataset=data.select(range(6)),
        processing_class=tokenizer,
        **({} if full else {"peft_config": LoraConfig(r=4, target_modules="all-linear")}),
    )
    assert trainer.form_reason is None
    assert trainer.preference_step is not None and trainer.preference_step.policy.sharded is sharded
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def in_codes(folder: Path, form: str, dtype: torch.dtype) -> Any:
    """The model with its linear layers in codes, as loading makes them."""
    place = folder.parent / "whole"
    if not place.exists():  # of several processes the parent has written it
        model_for(tiny_tokenizer()).save_pretrained(place)
        tiny_tokenizer().save_pretrained(place)
    loaded, _ = load_model(
        str(place), dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32, **{form: True}
    )
    return loaded


def result(trainer: Any) -> dict[str, Any]:
    named = sorted((name, p.detach()) for name, p in trainer.model.named_parameters() if p.requires_grad)
    values = [(p.full_tensor() if hasattr(p, "full_tensor") else p).flatten().double() for _, p in named]
    return {"weights": torch.cat(values), "log": trainer.state.log_history, "pairs": trainer.trained_pairs}


class _Modules211:
    """torch.nn, but parameters over divided tensors are made as FSDP of torch 2.11 makes them: first with gradients."""

    def Parameter(self, data: Any, requires_grad: bool = True) -> Any:
        made = nn.Parameter(data) if isinstance(data, DTensor) else nn.Parameter(data, requires_grad=requires_grad)
        return made.requires_grad_(requires_grad)

    def __getattr__(self, name: str) -> Any:
        return getattr(nn, name)


def worker(folder: Path, names: list[str], resume: bool) -> None:
    _fsdp_param.nn = _Modules211()
    results: dict[str, Any] = {}
    for name in names:
        trainer = trained(folder / "run", RUNS[name], sharded=True)
        if "codes" in RUNS[name]:
            divided = [p for p in trainer.model.parameters() if p.dtype.itemsize == 1]
            assert divided and all(2 * p.to_local().numel() <= p.numel() + p.shape[-1] for p in divided)
        if name.startswith("fused"):
            assert trainer.preference_step.reference.in_lockstep and trainer.coverage is not None
        results[name] = result(trainer)
    saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    if not resume:
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
    in_codes(folder / "run", "load_in_fp8", torch.float32)
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
    exact = settings.keys().isdisjoint({"dtype", "codes"})  # but for norms, which round to float32 inside
    rounds_inputs = settings.get("codes", "load_in_4bit") != "load_in_4bit"  # those next to a tie differ
    bound = 1e-6 if exact else 1e-4 if not rounds_inputs else 1e-2 if "dtype" in settings else 1e-3
    assert several["pairs"] == one["pairs"]
    assert (several["weights"] - one["weights"]).norm() <= bound * one["weights"].norm()
    assert len(several["log"]) == len(one["log"])
    for mine, other in zip(several["log"], one["log"], strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen", "grad_norm", "eval_loss", "eval_rewards/margins"):
            if name in other:
                near = {"rel": 1e-6, "abs": 1e-9} if exact else {"rel": 5e-2, "abs": 5e-2}
                assert float(mine[name]) == pytest.approx(float(other[name]), **near), name


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All runs in two processes: where they lie, and what the first found."""
    folder = tmp_path_factory.mktemp("two")
    return folder, of_processes(2, folder, list(RUNS), resume=False)


@pytest.fixture(scope="module")
def three(two: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """Runs in three processes, one of which continues a run of two."""
    return of_processes(3, two[0], list(THREE), resume=True)


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(two: tuple[Path, dict[str, Any]], tmp_path: Path, name: str) -> None:
    is_the_run_of_one(two[1][name], tmp_path / "one", RUNS[name])


@pytest.mark.long
def test_checkpoints_hold_the_whole_adapter_or_model(two: tuple[Path, dict[str, Any]]) -> None:
    weights = load_file(two[0] / "adapter" / "checkpoint-2" / "adapter_model.safetensors")
    model = model_for(tiny_tokenizer())
    sizes = {name: module.weight.shape for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, weight in weights.items():
        layer, kind = name.removeprefix("base_model.model.").rsplit(".lora_", 1)
        assert weight.shape == ((4, sizes[layer][1]) if kind.startswith("A") else (sizes[layer][0], 4))
    whole = load_file(two[0] / "saved" / "checkpoint-2" / "model.safetensors")
    named = dict(model.named_parameters())
    assert {name: weight.shape for name, weight in whole.items()} == {name: named[name].shape for name in whole}
    assert set(named) - set(whole) <= {"lm_head.weight"}


@pytest.mark.long
@pytest.mark.parametrize("name", THREE)
def test_three_processes_equal_one(three: dict[str, Any], tmp_path: Path, name: str) -> None:
    is_the_run_of_one(three[name], tmp_path / "one", RUNS[name])


@pytest.mark.long
def test_three_processes_continue_a_run_of_two(three: dict[str, Any], tmp_path: Path) -> None:
    one = result(trained(tmp_path / "one", {"max_steps": 4}, sharded=False))
    assert (three["resumed"]["weights"] - one["weights"]).norm() <= 1e-6 * one["weights"].norm()
