"""What a machine has, read from files as Linux writes them, and what holds on the machine that runs this."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from wishbone.planning import hardware

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse avx2 avx512f avx512bw avx512_bf16 amx_bf16 amx_tile
"""
OLD = "processor\t: 0\nmodel name\t: AMD Opteron\nflags\t\t: fpu sse sse2\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n"


@pytest.mark.parametrize(
    ("text", "model", "features", "bf16"),
    [
        (INTEL, "Intel(R) Xeon(R) Platinum 8480+", ("AVX2", "AVX-512", "AVX-512 BF16", "AMX BF16"), True),
        (INTEL.replace("bf16", "x"), "Intel(R) Xeon(R) Platinum 8480+", ("AVX2", "AVX-512"), False),
        (OLD, "AMD Opteron", (), False),
        (ARM, None, ("SVE", "BF16"), True),
        ("", None, (), False),
    ],
)
def test_processors(tmp_path: Path, text: str, model: str | None, features: tuple[str, ...], bf16: bool):
    (tmp_path / "cpuinfo").write_text(text)
    cpu = hardware.read_cpu(tmp_path / "cpuinfo", tmp_path)
    assert cpu.features == features
    assert cpu.bf16 == bf16
    assert cpu.model == model if model else cpu.model


def test_no_cpuinfo_is_no_crash(tmp_path: Path):
    assert hardware.read_cpu(tmp_path / "missing", tmp_path).features == ()


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("10000 100000", 1), ("", 8)])
def test_cores_are_limited_by_the_control_group(tmp_path: Path, monkeypatch, quota: str, cores: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert hardware.read_cpu(tmp_path / "cpuinfo", tmp_path).cores == cores


def test_memory_is_limited_by_the_control_group(tmp_path: Path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 600000\ninactive_file 50000\nfile 100000\n")
    assert hardware.read_memory(tmp_path) == hardware.Memory(1_000_000, 350_000)


@pytest.mark.parametrize("limit", ["max\n", "99999999999999999999\n", None])
def test_without_a_limit_memory_is_that_of_the_machine(tmp_path: Path, limit: str | None):
    if limit:
        (tmp_path / "memory.max").write_text(limit)
    memory = hardware.read_memory(tmp_path)
    assert memory.total == psutil.virtual_memory().total
    assert 0 < memory.available <= memory.total


def test_disk_of_a_directory_that_does_not_exist_yet(tmp_path: Path):
    free = hardware.free_disk(tmp_path / "not" / "yet")
    assert free == pytest.approx(psutil.disk_usage(str(tmp_path)).free, rel=0.01)


def test_accelerators_are_those_of_torch():
    import torch

    found = hardware.read_accelerators()
    assert len([gpu for gpu in found if gpu.kind == "cuda"]) == torch.cuda.device_count()
