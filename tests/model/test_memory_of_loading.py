"""What loading a checkpoint of several files takes on the host, beside the weights that stay there.

Files are mapped, so their pages count as the file's and go when memory is short (RssFile). What a process cannot give
back is anonymous memory (RssAnon), which is watched here while a model of 0.2 GB is loaded in each form.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from wishbone.model.load import load_model
from wishbone.process_memory import keep_host_memory

FORMS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "fp8": {"load_in_fp8": True},
    "int8": {"load_in_rotated_int8": True},
    "nf4": {"load_in_4bit": True},
}


def anonymous() -> int:
    """Bytes of this process's memory that belong to no file."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Context that leaves the growth of anonymous memory at its `peak`."""
    ctypes.CDLL(None).malloc_trim(0)
    before, found, done = anonymous(), {"peak": 0}, threading.Event()

    def watch() -> None:
        while not done.is_set():
            found["peak"] = max(found["peak"], anonymous() - before)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def checkpoint(folder: Path, layers: int) -> Path:
    """A random model in bfloat16, in files of 30 MB."""
    config = LlamaConfig(
        vocab_size=8000, hidden_size=512, intermediate_size=2048, num_hidden_layers=layers, num_attention_heads=8
    )
    place = folder / f"of-{layers}-layers"
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(config).save_pretrained(place, max_shard_size="30MB")
    finally:
        torch.set_default_dtype(torch.float32)
    tiny_tokenizer().save_pretrained(place)
    return place


def measure(form: str, small: str, large: str) -> None:
    """Print the peak, and the bytes of weights that stay in memory of this process."""
    keep_host_memory()  # as `wishbone train` does
    load_model(small, dtype="bfloat16", **FORMS[form])  # what is imported on the way counts no more
    with watched() as found:
        model, _ = load_model(large, dtype="bfloat16", **FORMS[form])
    resting = sum(weight.nbytes for weight in model.parameters())
    if form == "bfloat16":
        resting = 0  # the weights are the mapped files
    print(json.dumps({**found, "resting": resting}))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", FORMS)
def test_loading_takes_less_than_a_third_of_the_checkpoint(form: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "memory-of-loading"
    if not folder.exists():
        checkpoint(folder, 1), checkpoint(folder, 20)
    small, large = folder / "of-1-layers", folder / "of-20-layers"
    files = [file.stat().st_size for file in large.glob("*.safetensors")]
    assert len(files) >= 5 and sum(files) > 180e6
    command = f"from model.test_memory_of_loading import measure; measure({form!r}, {str(small)!r}, {str(large)!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(form, {**found, "checkpoint": sum(files)})
    assert 0.9 * found["resting"] <= found["peak"] < found["resting"] + sum(files) / 3
