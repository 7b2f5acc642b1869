"""Several processes (gloo, CPU) give the single process's result."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from forked import Forked
from peft import LoraConfig
from tiny import tiny_tokenizer

from trainer.preference_runs import adapter, arguments, chat_pairs, losses, model_for, run
from wishbone import DPOConfig, DPOTrainer
from wishbone.errors import RequestError
from wishbone.model.load import load_model
from wishbone.preference.losses import LOSSES

WITHIN = 240
"""Seconds that a process may take."""
SHARED: dict[str, dict[str, Any]] = {
    "batches that do not divide": {},
    "a coupled loss": {"loss_type": "aot"},
    "a process without work": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 4},
    "a mixture's auxiliary loss": {"family": "mixtral", "max_steps": 3},
    "fewer groups than processes": {"loss_type": "aot", "gradient_accumulation_steps": 1, "max_steps": 3},
    "evaluated after each step, tokens counted": {
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "include_num_input_tokens_seen": "all",
    },
}
"""Settings of runs whose processes share out each step: 11 pairs for two epochs, four pairs a step at most."""


HELD_OUT = ("eval_loss", "eval_rewards/margins", "eval_logps/chosen")
"""Of five pairs in batches of two: one of two and of four processes has only pairs of others in the end."""
FP8: dict[str, Any] = {"fp8": True, "max_steps": 2}
EACH_LOSS: dict[str, dict[str, Any]] = {
    name: {"loss_type": name, "max_steps": 2, "label_smoothing": 0.1 if name == "exo_pair" else 0.0} for name in LOSSES
}


def shared_run(folder: Path, settings: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    tokenizer, settings = tiny_tokenizer(), dict(settings)
    family, fp8 = settings.pop("family", "llama"), settings.pop("fp8", False)
    options = {"gradient_accumulation_steps": 2, "max_steps": -1, "num_train_epochs": 2, **settings}
    options |= {"per_device_eval_batch_size": 2}
    model = model_for(tokenizer, family).double()
    if fp8:
        model, _ = load_model(str(folder.parent / "whole"), dtype=torch.float32, load_in_fp8=True)
    if family == "mixtral":
        model.config.output_router_logits, model.config.router_aux_loss_coef = True, 0.5
    data = Dataset.from_list(list(chat_pairs(5, seed=9)))
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**arguments(folder, **options), shared_steps=True, token_budget=100),
        train_dataset=Dataset.from_list(list(chat_pairs(11, seed))),
        eval_dataset=data if "eval_strategy" in options else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    held_out = trainer.evaluate(data)
    assert ("aux_loss" in trainer.state.log_history[0]) is (family == "mixtral")
    return {
        "adapter": adapter(trainer),
        "log": trainer.state.log_history,
        "pairs": trainer.trained_pairs,
        "tokens": trainer.trained_tokens,
        "counted": [trainer.state.num_input_tokens_seen, trainer.state.total_flos],
        "a step": trainer.get_total_train_batch_size(trainer.args),
        "held out": {name: value for name, value in held_out.items() if name in HELD_OUT},
    }


def worker(folder: Path, runs: dict[str, dict[str, Any]], own_batches: bool) -> None:
    for state in (AcceleratorState, GradientState, PartialState):  # of the process that this one was forked from
        state._reset_state()
    results: dict[str, Any] = {name: shared_run(folder, settings) for name, settings in runs.items()}
    if own_batches:
        rank = int(os.environ["RANK"])
        with pytest.raises(RequestError, match=r"training data is .* in process 0 and .* in process 1"):
            shared_run(folder, {"max_steps": 1}, seed=rank)
        for name, values in {"learning_rate": (0.01, 0.001), "max_steps": (1, 2)}.items():
            with pytest.raises(RequestError, match=f"{name} is {values[0]} in process 0 and {values[1]} in process 1"):
                shared_run(folder, {"max_steps": 1, name: values[rank]})
        trainer = run(DPOTrainer, DPOConfig, folder, gradient_accumulation_steps=2, token_budget=100)
        assert trainer.accelerator.num_processes == 2
        results["fp8"] = shared_run(folder, FP8)
        results["own"] = {"adapter": adapter(trainer), "losses": losses(trainer), "log": trainer.state.log_history}
    if int(os.environ["RANK"]) == 0:
        torch.save(results, folder / "r")
    torch.distributed.barrier()


def of_processes(
    count: int, folder: Path, runs: dict[str, dict[str, Any]], *, own_batches: bool = False
) -> dict[str, Any]:
    """What the first of several processes found in runs; they are forked from this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"ACCELERATE_USE_CPU": "true"}
    folder.mkdir(exist_ok=True)
    children = [
        Forked(lambda: worker(folder, runs, own_batches), folder, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    said = [child.communicate(WITHIN)[1] for child in children]
    assert not any(child.returncode for child in children), "\n".join(text[-3000:] for text in said)
    found: dict[str, Any] = torch.load(folder / "r", weights_only=True)
    return found


def is_the_run_of_one(several: dict[str, Any], folder: Path, settings: dict[str, Any]) -> None:
    one = shared_run(folder, settings)
    assert all(several[name] == one[name] for name in ("pairs", "tokens", "counted", "a step"))
    assert (several["adapter"] - one["adapter"]).norm() <= 1e-9 * one["adapter"].norm()
    assert several["held out"] == pytest.approx(one["held out"], rel=1e-6, abs=1e-9)
    assert len(one["held out"]) == len(HELD_OUT) and len(several["log"]) == len(one["log"])
    for mine, other in zip(several["log"], one["log"], strict=True):
        assert mine.keys() == other.keys()
        for name in ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "grad_norm", "learning_rate"):
            if name in other:
                assert float(mine[name]) == pytest.approx(float(other[name]), rel=1e-6, abs=1e-9), name


def test_two_processes_equal_one(tmp_path: Path) -> None:
    model_for(tiny_tokenizer()).save_pretrained(tmp_path / "whole")
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    found = of_processes(2, tmp_path / "several", SHARED, own_batches=True)
    for name, settings in SHARED.items():
        is_the_run_of_one(found[name], tmp_path / "one", settings)

    weights = shared_run(tmp_path / "one", FP8)["adapter"]
    assert (found["fp8"]["adapter"] - weights).norm() <= 1e-3 * weights.norm()  # inputs next to a tie differ
    two = found["own"]
    one = run(DPOTrainer, DPOConfig, tmp_path / "one", gradient_accumulation_steps=4, token_budget=1000)
    weights = adapter(one)
    assert (two["adapter"] - weights).norm() <= 1e-6 * weights.norm()
    for mine, other in zip(two["log"], one.state.log_history, strict=True):
        for name in ("loss", "rewards/margins", "rewards/accuracies", "entropy", "logps/chosen", "num_tokens"):
            if name in other:
                assert abs(float(mine[name]) - float(other[name])) <= 1e-4 * abs(float(other[name])) + 1e-6, name


@pytest.mark.long
@pytest.mark.parametrize(("count", "runs"), [(3, SHARED), (4, SHARED | EACH_LOSS)], ids=["3", "4, each loss"])
def test_more_processes_equal_one(count: int, runs: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    found = of_processes(count, tmp_path, runs)
    for name, settings in runs.items():
        is_the_run_of_one(found[name], tmp_path / "one", settings)
