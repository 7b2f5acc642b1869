"""One script on two GPUs, started in each way that people start scripts; all give the losses of one GPU.

All runs go at once, in processes of their own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny import write_tiny_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

SEEN = os.environ.get("CUDA_VISIBLE_DEVICES")
"""GPUs that this process may use, before tests of one hide the others."""
LONGEST = 150.0
"""Seconds for a run, of which ten share the machine."""
SCRIPT = """\
import json, os, sys


def main(name, how):  # notebook_launcher refuses processes in which bitsandbytes, which peft imports, is imported
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wishbone import DPOConfig, DPOTrainer

    model = "model"
    if how != "by name":
        places = {"device_map": "auto"} if how == "split" else {}
        model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32, **places)
    cpu = not torch.cuda.is_available()
    args = DPOConfig(
        output_dir=name, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=4, learning_rate=1e-2,
        lr_scheduler_type="constant", report_to=[], save_strategy="no", logging_steps=1, bf16=False, use_cpu=cpu,
        disable_tqdm=True, shared_steps=True, max_length=64, token_budget=256, model_init_kwargs={"dtype": "float32"}
        if how == "by name" else None,
    )
    trainer = DPOTrainer(
        model=model, args=args, train_dataset=load_dataset("json", data_files="pairs.jsonl", split="train"),
        processing_class=AutoTokenizer.from_pretrained("model"),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    step = trainer.preference_step
    found = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "processes": trainer.accelerator.num_processes,
        "in the step": step is not None,
        "divided": step is not None and step.policy.sharded,
        "devices": sorted({str(parameter.device) for parameter in trainer.model.parameters()}),
    }
    if trainer.accelerator.is_main_process:
        with open(name + ".json", "w") as stream:
            json.dump(found, stream)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def spawned(rank, name, how, port):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    main(name, how)


if __name__ == "__main__":
    name, how, port = sys.argv[1:]
    if how == "notebook":
        from accelerate import notebook_launcher

        notebook_launcher(main, (name, how), num_processes=2, use_port=port)
    elif how == "spawn":
        import torch

        torch.multiprocessing.spawn(spawned, (name, how, port), nprocs=2)
    else:
        main(name, how)
"""
FSDP2 = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
machine_rank: 0
main_training_function: main
mixed_precision: "no"
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
"""
TORCHRUN = ["-m", "torch.distributed.run"]
WAYS: dict[str, tuple[int, list[str]]] = {
    "one": (1, []),
    "plain": (1, []),
    "by name": (1, []),
    "torchrun": (2, [*TORCHRUN, "--nproc-per-node", "2", "--master-port", "PORT"]),
    "accelerate": (2, ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]),
    "fsdp2": (2, ["-m", "accelerate.commands.launch", "--config_file", "fsdp2.yaml"]),
    "notebook": (2, []),
    "spawn": (2, []),
}
"""Processes, and what starts them; scripts without a starter are run by Python alone."""
MACHINES = "static rendezvous"
"""Two launchers, each with a GPU of its own, as on two machines."""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def started(folder: Path, words: list[str], gpus: str | None, status: int = 0) -> str:
    """Run Python with words to its end, whose status is known; return what it said on stderr."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "400", "OMP_NUM_THREADS": "2"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, text=True, env=environment, stderr=subprocess.PIPE, timeout=LONGEST
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done.stderr


def found(folder: Path, way: str, name: str) -> dict[str, Any]:
    """What a way of starting gave, with what it said."""
    port = free_port()
    if way == MACHINES:
        options = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "static"]
        options += ["--master-addr", "127.0.0.1", "--master-port", port]
        with ThreadPoolExecutor(2) as pool:
            both = [
                pool.submit(started, folder, [*options, "--node-rank", str(rank), "script.py", name, way, port], gpu)
                for rank, gpu in enumerate((SEEN or "0,1").split(",")[:2])
            ]
        said = both[0].result() + both[1].result()
    else:
        starter = [port if word == "PORT" else word for word in WAYS[way][1]]
        if "accelerate.commands.launch" in starter:
            starter += ["--main_process_port", port]
        said = started(folder, [*starter, "script.py", name, way, port], "0" if way == "one" and not SEEN else SEEN)
    return {**json.loads((folder / f"{name}.json").read_text()), "said": said}


def prepared(folder: Path) -> Path:
    """Write a model, pairs, the script and accelerate's file into a folder."""
    write_tiny_run(folder, "", pairs=43)
    (folder / "script.py").write_text(SCRIPT)
    (folder / "fsdp2.yaml").write_text(FSDP2)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Any]]]:
    folder = prepared(tmp_path_factory.mktemp("launchers"))
    with ThreadPoolExecutor(len(WAYS) + 1) as pool:
        yield {way: pool.submit(found, folder, way, way.replace(" ", "-")) for way in [*WAYS, MACHINES]}
        for child in psutil.Process().children(recursive=True):
            child.kill()


@pytest.mark.parametrize("way", [*(way for way in WAYS if way != "one"), MACHINES])
def test_losses_are_those_of_one_gpu(runs: dict[str, Future[Any]], way: str) -> None:
    one, other = runs["one"].result(), runs[way].result()
    apart = max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True))
    print(way, "apart", apart, {name: other[name] for name in other if name not in ("losses", "said")})
    assert apart <= 1e-4
    assert other["processes"] == (WAYS[way][0] if way in WAYS else 2)


@pytest.mark.parametrize("way", ["plain", "by name"])
def test_one_process_alone_uses_one_gpu_and_says_so(runs: dict[str, Future[Any]], way: str) -> None:
    run = runs[way].result()
    assert run["in the step"] and run["devices"] == ["cuda:0"]
    assert "one of the 2 GPUs" in run["said"] and "torchrun --nproc-per-node 2 script.py" in run["said"]


def test_a_split_model_is_refused(tmp_path: Path) -> None:
    """device_map="auto" puts it on both GPUs; the refusal is the last line, before any step."""
    said = started(prepared(tmp_path), ["script.py", "split", "split", "0"], SEEN, status=1)
    print(said[-800:])
    last = said.strip().splitlines()[-1]
    assert "RequestError" in last and "lie on 2 devices (0, 1)" in last
    assert "torchrun --nproc-per-node 2" in last and not (tmp_path / "split.json").exists()


def test_a_file_of_accelerate_divides_the_model_in_the_step(runs: dict[str, Future[Any]]) -> None:
    run = runs["fsdp2"].result()
    assert run["in the step"] and run["divided"]
