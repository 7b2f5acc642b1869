"""Passes over long rows on a CPU tell how far they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from trainer.preference_runs import chat_pairs, losses
from trainer.side_by_side import trainer

from wishbone.phases import Phase, listening
from wishbone.policy import layer_progress
from wishbone.policy.activations import checkpointed_layers


class Told:
    """What a listener was told: names as phases begin, names and parts done as they end."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.ends: list[tuple[str, int, int | None]] = []
        self.within: set[tuple[str, ...]] = set()

    def began(self, phase: Phase) -> None:
        self.open.append(phase.name)
        self.within.add(tuple(self.open))

    def moved(self, phase: Phase) -> None:
        pass

    def ended(self, phase: Phase) -> None:
        self.open.remove(phase.name)
        self.ends.append((phase.name, phase.done, phase.total))


@pytest.mark.parametrize("recompute", [False, True])
def test_layers_of_training_and_evaluation_are_told_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    options = {"gradient_checkpointing": recompute, "activations": "recompute" if recompute else "auto", "max_steps": 1}
    further = lambda: {"eval_dataset": chat_pairs(3, seed=1)}  # noqa: E731
    quiet = trainer("ours", tmp_path, options, further=further)
    quiet.train()
    monkeypatch.setattr(layer_progress, "LONG", 2)
    told = Told()
    with listening(told):
        ours = trainer("ours", tmp_path, options, further=further)
        ours.evaluate()
        assert ("evaluation", "forward") in told.within
        assert {end for end in told.ends if end[0] == "forward"} == {("forward", 2, 2)}
        ours.train()
    assert ("backward", 2, 2) in told.ends and ("evaluation", 1, 1) in told.ends
    assert not told.open
    assert losses(ours) == losses(quiet)


def test_only_the_first_pass_of_an_answer_is_told() -> None:
    model, told = tiny_model("llama"), Told()
    with listening(told), layer_progress.counted_layers(checkpointed_layers(model), layer_progress.LONG, model.device):
        model.generate(torch.arange(3, 20)[None], max_new_tokens=5, do_sample=False)
    assert told.ends == [("forward", 2, 2)]
    with (
        listening(told),
        layer_progress.counted_layers(checkpointed_layers(model), layer_progress.LONG - 1, model.device),
    ):
        model(torch.arange(3, 20)[None])
    assert len(told.ends) == 1
    assert not any(layer._forward_hooks for layer in checkpointed_layers(model))
