"""Two processes (gloo, CPU) give the single process's result."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from trainer.preference_runs import adapter, losses, run
from wishbone import DPOConfig, DPOTrainer

TESTS = Path(__file__).parent.parent


def worker(folder: Path) -> None:
    trainer = run(DPOTrainer, DPOConfig, folder, gradient_accumulation_steps=2, token_budget=100)
    assert trainer.accelerator.num_processes == 2
    if trainer.is_world_process_zero():
        torch.save(
            {"adapter": adapter(trainer), "losses": losses(trainer), "log": trainer.state.log_history}, folder / "r"
        )
    torch.distributed.barrier()
    os._exit(0)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", f"from trainer.test_two_processes import *; worker(Path({str(tmp_path)!r}))"]
    processes = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1].decode() for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)[-3000:]
    two = torch.load(tmp_path / "r", weights_only=True)

    one = run(DPOTrainer, DPOConfig, tmp_path / "one", gradient_accumulation_steps=4, token_budget=1000)
    weights = adapter(one)
    assert (two["adapter"] - weights).norm() <= 1e-6 * weights.norm()
    for mine, other in zip(two["log"], one.state.log_history, strict=True):
        for name in ("loss", "rewards/margins", "rewards/accuracies", "entropy", "logps/chosen", "num_tokens"):
            if name in mine:
                assert abs(float(mine[name]) - float(other[name])) <= 1e-4 * abs(float(other[name])) + 1e-6, name
