"""GPUs by the names of people and of drivers; who is not known is told what is."""

from __future__ import annotations

import pytest

from wishbone.errors import RequestError
from wishbone.planning.gpus import find_gpu, known_gpus


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4070 ti super", "RTX 4070 Ti Super"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti 16GB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 Blackwell"),
        ("A6000", "RTX A6000"),
    ],
)
def test_a_gpu_is_known_as_people_and_drivers_write_it(name: str, known: str):
    assert find_gpu(name).name == known


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("RTX 4095", "did you mean RTX 4090 or "),
        ("A100", "did you mean A100 40GB or A100 80GB?"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "is not the name of one known GPU"),
        ("RTX 3080 Ti", "is not the name of one known GPU"),
        ("", "known are P100, "),
        ("[bold]\x1b[31m\n", "known are P100, "),
    ],
)
def test_another_name_is_refused_with_the_nearest(name: str, hint: str):
    with pytest.raises(RequestError) as refusal:
        find_gpu(name)
    assert hint in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_figures_hang_together():
    for gpu in known_gpus().values():
        assert 8 < gpu.memory_gib < 200
        assert 250 < gpu.bandwidth_gbs < 10_000
        assert (gpu.bf16_tflops is not None) == (gpu.capability >= 8.0)
        assert (gpu.fp8_tflops is not None) == (gpu.capability >= 8.9)
        assert gpu.fp16_tflops is not None
        if gpu.bf16_tflops is not None and gpu.fp8_tflops is not None:
            assert gpu.fp16_tflops == gpu.bf16_tflops
            assert gpu.fp8_tflops == pytest.approx(2 * gpu.bf16_tflops, rel=0.02)
        assert gpu.source
    assert find_gpu("H200").measured is not None
