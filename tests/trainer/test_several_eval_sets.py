"""Several held-out sets: every metric is under the name of its set. Sets without rows and trackers that are absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer

from trainer.preference_runs import arguments, chat_pairs, model_for
from trainer.side_by_side import lora
from wishbone import DPOConfig, DPOTrainer
from wishbone.errors import RequestError


def trainer(folder: Path, data: Any = None, heldout: Any = None, **options: Any) -> DPOTrainer:
    return DPOTrainer(
        model_for(tiny_tokenizer()),
        args=DPOConfig(**arguments(folder, max_steps=1, **options)),
        train_dataset=chat_pairs(8) if data is None else data,
        eval_dataset=heldout,
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )


def test_every_metric_is_under_the_name_of_its_set(tmp_path: Path) -> None:
    sets = {"easy": chat_pairs(4, seed=1), "hard": chat_pairs(6, seed=2)}
    several = trainer(tmp_path, heldout=sets).evaluate()
    for name, pairs in sets.items():
        alone = trainer(tmp_path, heldout=pairs).evaluate()
        measured = [metric.removeprefix("eval_") for metric in alone if "reward" in metric or "logps" in metric]
        assert len(measured) == 6
        for metric in measured:
            assert several[f"eval_{name}_{metric}"] == pytest.approx(alone[f"eval_{metric}"])
    assert not any(metric.startswith(("eval_rewards", "eval_logps")) for metric in several)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": chat_pairs(4).select([])}, "train_dataset has no rows"),
        ({"heldout": {"a": chat_pairs(4), "b": chat_pairs(4).select([])}}, r"eval_dataset\['b'\] has no rows"),
        ({"max_length": 2}, "every train pair would be dropped"),
        ({"report_to": "clearml"}, "report_to names 'clearml', and its package is not installed"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        trainer(tmp_path, **given)
