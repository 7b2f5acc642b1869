"""GPUs by the names of people and of drivers; who is not known is told what is."""

from __future__ import annotations

import re

import pytest

from wishbone.errors import RequestError
from wishbone.planning.gpus import SOLD, Gpu, assumed_gpu, find_gpu, known_gpus


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
        ("NVIDIA GeForce RTX 4060 Ti 16GB", "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 Laptop"),
        ("4090 laptop", "RTX 4090 Laptop"),
        ("RTX 3080 Ti", "RTX 3080 Ti"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000 Blackwell"),
        ("A6000", "RTX A6000"),
        ("RTX PRO 6000", "RTX PRO 6000 Blackwell"),
        ("rtx pro 5000", "RTX PRO 5000 Blackwell"),
        ("NVIDIA A100 80 GB", "A100 80GB"),
        ("a100-80g", "A100 80GB"),
        ("RTX 4060 Ti 16 GiB", "RTX 4060 Ti 16GB"),
        ("A10G", "A10G"),
        ("1x A100 80GB", "A100 80GB"),
    ],
)
def test_a_gpu_is_known_as_people_and_drivers_write_it(name: str, known: str):
    assert find_gpu(name).name == known


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("RTX 4095", "did you mean RTX 4090 or "),
        ("RTX 3060 10GB", "or RTX 3060 12GB"),
        ("40", "is not the name of one known GPU"),
        ("RTX 60", "is not the name of one known GPU"),
        ("mi300x", "is an AMD GPU, which is known and not supported yet"),
        ("AMD Instinct MI250", "is an AMD GPU"),
        ("Radeon RX 7900 XTX", "is an AMD GPU"),
        ("M3 Max", "is Apple silicon, which is known"),
        ("Intel Arc B580", "is an Intel accelerator"),
        ("TPU v5e", "is a TPU"),
        ("Radeon 7900", "is an AMD GPU"),
        ("MacBook Pro M3", "is Apple silicon"),
        ("8x MI300X", "is an AMD GPU"),
        ("2x H100", "'2x H100' is 2 GPUs; name one of them, 'h100', and say how many there are with --gpus 2"),
        ("8 A100 80GB", "is 8 GPUs; name one of them, 'a100 80gb'"),
        ("H200x8", "name one of them, 'h200', and"),
        ("RTX 4090 x2", "name one of them, 'rtx 4090', and"),
        ("24 gigabytes", "is not the name of one known GPU"),
        ("24", "did you mean 24GB?"),
        ("RTX A5000", "Of another GPU write the memory, such as 24GB"),
        ("RTX PRO 5000 Blackwell Laptop", "is not the name of one known GPU"),
        ("20GB", "'20GB' is the memory of no known GPU; known are 4, 6, 8, 10, "),
        ("999 GB", "Name the GPU, or the next smaller memory"),
        ("-4GB", "'-4GB' is no GPU and no memory of one; write a name, such as RTX 4090, or a memory, such as 24GB"),
        ("\u2212 24 GB", "is no GPU and no memory of one"),
        (".24GB", "is no GPU and no memory of one"),
        ("~24GB", "is no GPU and no memory of one"),
        ("a -4GB card", "is no GPU and no memory of one"),
        ("RTX -4090", "is no GPU and no memory of one"),
        ("-1x H100", "is no GPU and no memory of one"),
        ("0x H100", "'0x H100' is 0 GPUs; name one"),
        ("", "known are P100, "),
        ("[bold]\x1b[31m\n", "known are P100, "),
    ],
)
def test_another_name_is_refused_with_the_nearest(name: str, hint: str):
    with pytest.raises(RequestError) as refusal:
        find_gpu(name)
    assert hint in str(refusal.value)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("name", "taken", "other"),
    [
        ("H100", "H100 PCIe", "H100 SXM"),
        ("nvidia h100 80gb", "H100 PCIe", "H100 SXM"),
        ("A100", "A100 40GB", "A100 80GB"),
        ("A100 SXM", "A100 40GB", "A100 80GB"),
        ("RTX 40", "RTX 4060", "RTX 4090"),
        ("RTX 50 series", "RTX 5050", "RTX 5090"),
        ("rtx 40 laptop", "RTX 4050 Laptop", "RTX 4090 Laptop"),
        ("RTX 3080", "RTX 3080 10GB", "RTX 3080 12GB"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti 8GB", "RTX 4060 Ti 16GB"),
    ],
)
def test_less_than_a_name_is_the_smallest_that_it_may_be(name: str, taken: str, other: str):
    assert find_gpu(name).name == taken
    said = assumed_gpu(name)
    assert said is not None and f"is taken for {taken}," in said and other in said and "\n" not in said
    assert ("Laptop" in said) == ("laptop" in name)


@pytest.mark.parametrize(
    ("name", "taken", "others", "never"),
    [
        ("24GB", "A10", ["RTX 3090", "RTX 4090", "L4"], ["V100", "RTX 3080"]),
        ("a 24 GB card", "A10", ["RTX 4090"], []),
        ("48 GiB of VRAM", "A40", ["RTX 6000 Ada", "L40S", "RTX PRO 5000 Blackwell"], []),
        ("80g", "A100 80GB", ["H100 SXM"], []),
        ("16GB", "RTX 3080 Laptop 16GB", ["RTX 4080"], ["T4", "V100", "P100"]),
        ("15GB", "T4", [], ["P100"]),
        ("11 GB", "RTX 2080 Ti", [], []),
        ("141GB", "H200", [], []),
    ],
)
def test_memory_alone_is_a_gpu_whose_settings_work_on_all_others(
    name: str, taken: str, others: list[str], never: list[str]
):
    gpu, said = find_gpu(name), assumed_gpu(name)
    assert gpu.name == taken and said is not None and f"is taken for {taken}" in said and "\n" not in said
    assert [other for other in others if other not in said] == [other for other in never if other in said] == []
    meant = [known_gpus()[other] for other in others]
    assert all(other.capability >= gpu.capability and other.memory_gib > gpu.memory_gib - 0.5 for other in meant)


def test_every_gpu_is_found_by_the_memory_that_it_is_sold_with():
    sold = [next(size for size in SOLD if size >= gpu.memory_gib) for gpu in known_gpus().values()]
    assert set(sold) == set(SOLD)
    assert all(size * 0.93 < gpu.memory_gib for size, gpu in zip(sold, known_gpus().values(), strict=True))
    assert [size for size in SOLD if find_gpu(f"{size}GB").memory_gib > size] == []


def test_the_memory_of_a_driver_tells_forms_apart():
    assert find_gpu("NVIDIA GeForce RTX 4060 Ti", 15.6).name == "RTX 4060 Ti 16GB"
    assert find_gpu("NVIDIA A100-SXM4", 79.2).name == "A100 80GB"


def test_a_whole_name_assumes_nothing():
    assert [name for name in known_gpus() if assumed_gpu(name) or find_gpu(name).name != name] == []


def test_figures_hang_together():
    for gpu in known_gpus().values():
        assert 3 < gpu.memory_gib < 300
        assert 150 < gpu.bandwidth_gbs < 10_000
        assert (gpu.bf16_tflops is not None) == (gpu.capability >= 8.0)
        assert (gpu.fp8_tflops is not None) == (gpu.capability >= 8.9)
        assert gpu.fp16_tflops is not None
        assert (gpu.int8_tflops is not None) == (gpu.capability >= 7.5 and gpu.name != "B300")
        if gpu.int8_tflops is not None:  # twice float16, or four times where cards halve it with sums in float32
            assert gpu.int8_tflops / gpu.fp16_tflops == pytest.approx(4 if re.match(r"RTX [2-5]0\d\d", gpu.name) else 2)
        if gpu.bf16_tflops is not None and gpu.fp8_tflops is not None:
            assert gpu.fp16_tflops == gpu.bf16_tflops
            assert gpu.fp8_tflops == pytest.approx(2 * gpu.bf16_tflops, rel=0.02)
        assert gpu.source
    assert find_gpu("H200").measured is not None


LAPTOPS = [gpu for gpu in known_gpus().values() if "Laptop" in gpu.name]


@pytest.mark.parametrize("gpu", LAPTOPS, ids=lambda gpu: gpu.name)
def test_figures_of_laptops_follow_from_what_their_source_says(gpu: Gpu):
    """Cores times clock times two, times what a tensor core adds; or NVIDIA's AI TOPS, of sparse FP4, over 16."""
    found = re.match(
        r"([\d,]+) CUDA cores(?: at ([\d,]+) MHz)?(?:, ([\d,]+) AI TOPS)?, (\d+) bit at (\d+) Gbps \(.+?\); ",
        gpu.source,
    )
    assert found is not None, gpu.source
    cores, clock, tops, bits, speed = (int(text.replace(",", "")) if text else None for text in found.groups())
    assert cores and bits and speed
    factor = 4 if gpu.capability == 7.5 else 2
    rate = tops / 16 if tops else 2 * cores * (clock or 0) * factor / 1e6
    assert gpu.fp16_tflops == pytest.approx(rate, abs=0.06)
    assert gpu.bf16_tflops in (None, gpu.fp16_tflops) and (gpu.bf16_tflops is None) == (gpu.capability < 8)
    assert (gpu.fp8_tflops is None) == (gpu.capability < 8.9)
    assert gpu.fp8_tflops is None or gpu.fp8_tflops == pytest.approx(2 * gpu.fp16_tflops, abs=0.11)
    assert gpu.bandwidth_gbs == bits * speed / 8


def test_every_series_of_geforce_cards_has_laptops():
    assert {gpu.name.split()[1][:2] for gpu in LAPTOPS} == {"20", "30", "40", "50"}
