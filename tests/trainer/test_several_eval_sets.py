"""Several held-out sets: every metric is under the name of its set. Sets without rows and trackers that are absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny import tiny_tokenizer
from transformers import TrainerCallback

from trainer.preference_runs import arguments, chat_pairs, model_for
from trainer.side_by_side import lora
from wishbone import DPOConfig, DPOTrainer
from wishbone.errors import RequestError

KTO = Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}] * 4)


def trainer(folder: Path, data: Any = None, heldout: Any = None, peft: Any = None, **options: Any) -> DPOTrainer:
    return DPOTrainer(
        model_for(tiny_tokenizer()),
        args=DPOConfig(**arguments(folder, max_steps=1, **options)),
        train_dataset=chat_pairs(8) if data is None else data,
        eval_dataset=heldout,
        processing_class=tiny_tokenizer(),
        peft_config=peft or lora(),
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
    ("metric", "named_sets", "said"),
    [
        ("accuracy", False, "choose one of loss, rewards/chosen, "),
        ("eval_loss", True, "choose one of a_loss, a_rewards/chosen, "),
        ("rewards/margins", False, None),
        ("eval_a_num_tokens", True, None),
    ],
)
def test_a_metric_that_is_not_measured_is_refused_before_training(
    tmp_path: Path, metric: str, named_sets: bool, said: str | None
) -> None:
    held_out = {"a": chat_pairs(2)} if named_sets else chat_pairs(2)
    run = trainer(tmp_path, heldout=held_out, metric_for_best_model=metric, eval_strategy="steps", eval_steps=1)
    if said is None:
        run.train()
        assert run.state.best_metric is not None
        return
    with pytest.raises(RequestError, match=said):
        run.train()
    assert not run.state.log_history


def test_metrics_of_the_users_own_are_left_to_them(tmp_path: Path) -> None:
    class Adds(TrainerCallback):
        def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
            metrics["eval_own"] = 1.0

    run = trainer(tmp_path, heldout=chat_pairs(2), metric_for_best_model="own", eval_strategy="steps", eval_steps=1)
    run.add_callback(Adds())
    run.train()
    assert run.state.best_metric == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": chat_pairs(4).select([])}, "train_dataset has no rows"),
        ({"heldout": {"a": chat_pairs(4), "b": chat_pairs(4).select([])}}, r"eval_dataset\['b'\] has no rows"),
        (
            {"data": KTO},
            r"train_dataset has the columns completion, label, prompt, .*KTO's rows of single answers are no",
        ),
        ({"heldout": {"a": KTO}}, r"eval_dataset\['a'\] has the columns"),
        ({"peft": {"r": 4}}, "peft_config is a dict; give one of PEFT's, such as peft.LoraConfig"),
        ({"peft": lora(modules_to_save="lm_head")}, r"modules_to_save is a text.*give a list: \['lm_head'\]"),
        ({"train_sampling_strategy": "group_by_length"}, "add 'length' and set remove_unused_columns=False"),
        ({"max_length": 2}, "every train pair would be dropped"),
        ({"report_to": "clearml"}, "report_to names 'clearml', and its package is not installed"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        trainer(tmp_path, **given)


@pytest.mark.parametrize(
    ("name", "said"),
    [("file", "is a file, or a link to nothing; name a directory"), ("a\0b", "a character that no path may hold")],
)
def test_a_place_where_nothing_can_be_saved_is_refused_before_a_run(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=said):
        trainer(tmp_path / name)


def test_a_name_that_no_model_card_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"\\udce4' is not text in UTF-8"):
        trainer(tmp_path / "\udce4")


def test_pairs_without_a_preference_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second is the same only as far as it is read, the third is another for its last token."""
    sides = [(" c", " c"), (" c c c c" * 9 + " d", " c c c c" * 9 + " e"), (" c", " d")]
    rows = Dataset.from_list([{"prompt": "a b", "chosen": chosen, "rejected": rejected} for chosen, rejected in sides])
    trainer(tmp_path, rows, max_length=20)
    assert "2 of 3 train pairs have the same completion twice, as far as max_length=20 reaches" in caplog.text
    caplog.clear()
    trainer(tmp_path, rows, max_length=None)
    assert "1 of 3 train pairs has the same completion twice: no preference can be learned" in caplog.text


def test_without_arguments_trls_defaults_hold_on_a_processor_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TRL's own defaults ask for bfloat16, which it refuses without a GPU."""
    monkeypatch.chdir(tmp_path)
    made = DPOTrainer(
        model_for(tiny_tokenizer()),
        train_dataset=chat_pairs(4),
        processing_class=tiny_tokenizer(),
        peft_config=lora(modules_to_save=["foo"], rank_pattern={"bar": 2}),
    )
    assert made.args.output_dir == "-DPO" and made.args.learning_rate == 1e-6 and made.preference_step is not None
    for name in ("modules_to_save names 'foo'", "rank_pattern names 'bar'"):
        assert f"{name}, and the model has no such module" in caplog.text
