"""Two processes (gloo, CPU) save one checkpoint, and continue from it as if they had not been stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.preference_runs import adapter
from trainer.test_checkpoints import At, trainer
from wishbone.config.run_directory import checkpoints_in
from wishbone.errors import RequestError
from wishbone.trainer.checkpoint_files import damage

TESTS = Path(__file__).parent.parent


def worker(folder: Path) -> None:
    """Four of six steps; the checkpoint after the fourth is damaged; all six, from the second; the same in one go."""
    stopped = trainer(folder / "parts", At(4))
    stopped.train()
    first = stopped.is_world_process_zero()
    names = {"rng_state_0.pth", "rng_state_1.pth", "manifest.json", "fingerprint.json"}
    for checkpoint in checkpoints_in(folder / "parts"):
        assert names <= {path.name for path in checkpoint.iterdir()} and damage(checkpoint) is None
    torch.distributed.barrier()
    if first:
        (folder / "parts" / "checkpoint-4" / "rng_state_1.pth").write_bytes(b"")
    torch.distributed.barrier()
    try:
        trainer(folder / "parts", learning_rate=0.02).train(resume_from_checkpoint=True)
        raise AssertionError("another learning rate was not refused")
    except RequestError as refused:
        assert "learning_rate was 0.01 and is 0.02" in str(refused)
    resumed = trainer(folder / "parts")
    assert resumed.checkpoint_to_resume() == folder / "parts" / "checkpoint-2"
    resumed.train(resume_from_checkpoint=True)
    whole = trainer(folder / "whole", save_minutes=1e-9)
    whole.train()
    assert torch.equal(adapter(resumed), adapter(whole))
    if first:
        assert [path.name for path in checkpoints_in(folder / "parts")][-1] == "checkpoint-6"
        (folder / "done").touch()
    torch.distributed.barrier()
    os._exit(0)


@pytest.mark.long
def test_both_save_and_continue(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "ACCELERATE_USE_CPU": "true"}
    program = f"from trainer.test_checkpoints_of_two_processes import *; worker(Path({str(tmp_path)!r}))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=400)[1].decode() for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)[-3000:]
    assert (tmp_path / "done").exists()
