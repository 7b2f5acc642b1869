"""The number of steps, by hand and as the trainer counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from wishbone.config.schema import TrainingConfig
from wishbone.planning.schedule import schedule


@pytest.mark.parametrize(
    ("pairs", "settings", "pairs_a_step", "steps", "warmup"),
    [
        (100, {}, 8, 13, 2),  # 12 full steps and one of 4 pairs; a tenth of 13, rounded up
        (96, {}, 8, 12, 2),
        (1, {}, 8, 1, 1),
        (100, {"batch_size": 4, "gradient_accumulation": 2}, 8, 13, 2),
        (100, {"batch_size": 3, "gradient_accumulation": 2}, 6, 17, 2),  # 34 micro-steps
        (100, {"epochs": 2.5}, 8, 33, 4),  # 2.5 times 13, rounded up
        (100, {"max_steps": 5, "epochs": 9.0}, 8, 5, 1),
        (100, {"warmup_ratio": 0.0}, 8, 13, 0),
    ],
)
def test_steps(pairs, settings, pairs_a_step, steps, warmup):
    plan = schedule(pairs, TrainingConfig(**settings))
    assert (plan.pairs_a_step, plan.steps, plan.warmup_steps) == (pairs_a_step, steps, warmup)


def test_epochs_of_a_run_with_a_number_of_steps():
    assert schedule(80, TrainingConfig(max_steps=5)).epochs == 0.5
    assert schedule(80, TrainingConfig(epochs=3.0)).epochs == 3.0


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [1, 7, 16, 23])
@pytest.mark.parametrize(
    "settings", [{}, {"batch_size": 3, "gradient_accumulation": 2, "epochs": 1.5}, {"max_steps": 4}]
)
def test_the_trainer_counts_the_same_steps(tmp_path: Path, pairs: int, settings: dict):
    import torch
    from transformers import Trainer, TrainingArguments

    training = TrainingConfig(**settings)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        warmup_steps=training.warmup_ratio,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )

    class Square(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * x).square().mean()}

    trainer = Trainer(Square(), arguments, train_dataset=[{"x": torch.tensor(1.0)}] * pairs)
    trainer.train()
    plan = schedule(pairs, training)
    assert trainer.state.global_step == plan.steps
    assert arguments.get_warmup_steps(plan.steps) == plan.warmup_steps
