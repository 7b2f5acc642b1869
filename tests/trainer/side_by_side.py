"""TRL's trainer and ours on the same model, data and arguments, for tests in which TRL is the judge."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from peft import LoraConfig, PeftConfig
from tiny import tiny_tokenizer

from trainer.preference_runs import arguments, chat_pairs, losses, model_for
from wishbone import DPOConfig, DPOTrainer

gc.freeze()  # what the libraries made while they were imported stays anyway; every train() looks through the rest
atexit.register(gc.unfreeze)

Make = Callable[[], Any]


def lora(**options: Any) -> LoraConfig:
    """LoRA of rank 4 on all linear layers, or what `options` say."""
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", **options})


CLASSES = {"theirs": (trl.DPOTrainer, trl.DPOConfig), "ours": (DPOTrainer, DPOConfig)}


def trainer(
    whose: str,
    folder: Path,
    options: dict[str, Any] | None = None,
    *,
    model: Make = lambda: model_for(tiny_tokenizer()),
    data: Make = lambda: chat_pairs(16),
    peft: Callable[[], PeftConfig | None] = lora,
    further: Callable[[], dict[str, Any]] = dict,
) -> Any:
    """Construct a trainer for three steps of two batches of two pairs.

    Args:
        whose: "theirs" (TRL's) or "ours".
        folder: its output directory goes there.
        options: of `DPOConfig`, beside those of `arguments`.
        model, data, peft: make the model, the training pairs and the adapter.
        further: makes further arguments of `DPOTrainer`.
    """
    make, config = CLASSES[whose]
    settings = {"max_steps": 3, "gradient_accumulation_steps": 2, **deepcopy(options or {})}
    torch.manual_seed(0)
    rest = {"processing_class": tiny_tokenizer(), "peft_config": peft(), **further()}
    return make(model(), args=config(**arguments(folder / whose, **settings)), train_dataset=data(), **rest)


def trainers(folder: Path, options: dict[str, Any] | None = None, **makers: Any) -> tuple[trl.DPOTrainer, DPOTrainer]:
    """Construct both trainers."""
    return trainer("theirs", folder, options, **makers), trainer("ours", folder, options, **makers)


def trained(folder: Path, options: dict[str, Any] | None = None, **makers: Any) -> tuple[trl.DPOTrainer, DPOTrainer]:
    """Construct and train TRL's trainer, then ours."""
    theirs = trainer("theirs", folder, options, **makers)
    theirs.train()
    ours = trainer("ours", folder, options, **makers)
    ours.train()
    return theirs, ours


def learned(trainer: Any) -> torch.Tensor:
    """All trained weights, one after the other."""
    named = sorted((name, weight) for name, weight in trainer.model.named_parameters() if weight.requires_grad)
    return torch.cat([weight.detach().flatten().float() for _, weight in named])


def under_its_set(entry: dict[str, float]) -> dict[str, float]:
    """An entry of TRL's log with all metrics under the name of the evaluated set, where TRL has only the loss there."""
    own = next((name.removesuffix("loss") for name in entry if name.startswith("eval_") and name.endswith("_loss")), "")
    return {
        name if name.startswith(own) else own + name.removeprefix("eval_") if name.startswith("eval_") else name: value
        for name, value in entry.items()
    }


def logged_names(trainer: Any) -> list[set[str]]:
    """Names in each log of a run, each metric of an evaluation under the name of its set."""
    return [set(under_its_set(entry)) for entry in trainer.state.log_history]


def assert_same(theirs: Any, ours: Any, *, rel: float = 1e-4, weights: float = 3e-4) -> None:
    """Fail unless both logged the same losses under the same names and ended with the same weights."""
    assert len(losses(ours)) == len(losses(theirs)) > 0
    assert losses(ours) == pytest.approx(losses(theirs), rel=rel)
    assert all(their <= our for their, our in zip(logged_names(theirs), logged_names(ours), strict=True))
    expected = learned(theirs)
    assert (learned(ours) - expected).norm() <= weights * expected.norm()


def assert_on_step(trainer: DPOTrainer) -> None:
    """Fail unless the trainer runs Wishbone's step with shared prefixes."""
    assert trainer.preference_step is not None
    assert trainer.preference_step.policy.form == "shared_prefix"
    assert trainer.form_reason is None
