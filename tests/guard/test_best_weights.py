"""The weights that a guard keeps: on disk as in memory, or not used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

from wishbone.guard.best_weights import FILE, BestWeights


@pytest.fixture
def model() -> torch.nn.Module:
    return get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))


def trained(model: torch.nn.Module) -> list[torch.Tensor]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def change(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for weight in trained(model):
            weight.add_(1)


def test_a_later_part_of_the_run_restores_what_an_earlier_one_kept(tmp_path: Path, model: torch.nn.Module) -> None:
    BestWeights(model, tmp_path, lambda _: None).keep(3, write=True)
    before = [weight.clone() for weight in trained(model)]
    change(model)
    later = BestWeights(model, tmp_path, lambda _: None)
    later.resume(3)
    assert later.restore(9) == 3
    assert all(map(torch.equal, trained(model), before))
    later.discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["flipped", "half", "empty"])
def test_damaged_ones_are_not_restored_but_a_checkpoint(
    tmp_path: Path, model: torch.nn.Module, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    BestWeights(model, tmp_path, lambda _: None).keep(3, write=True)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-1] ^= 1
    kept = {"flipped": content, "half": content[: len(content) // 2], "empty": b""}[harm]
    (tmp_path / FILE).write_bytes(kept)
    for name in ("checkpoint-2", "checkpoint-2.bak", "checkpoint-a7", "checkpoint-4"):
        (tmp_path / name).mkdir()
    loaded: list[str] = []
    later = BestWeights(model, tmp_path, loaded.append)
    later.resume(3)
    assert "is damaged" in caplog.text
    assert later.restore(3) == 2 and loaded == [str(tmp_path / "checkpoint-2")]


def test_a_disk_that_takes_nothing_costs_the_copy_and_not_the_run(
    tmp_path: Path, model: torch.nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f".{FILE}.partial").mkdir()  # what stands in the way of the file
    kept = BestWeights(model, tmp_path, lambda _: None)
    kept.keep(3, write=True)
    assert "cannot be written" in caplog.text
    change(model)
    assert kept.restore(9) == 3
