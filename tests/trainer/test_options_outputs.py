"""Checkpoints, best models, numbers' precision and the hub, beside TRL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from hub_stand_in import hub_stand_in
from peft import PeftModel
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from trainer.preference_runs import chat_pairs, losses, model_for
from trainer.side_by_side import assert_on_step, assert_same, learned, lora, trained, trainer
from wishbone import DPOTrainer

pytestmark = pytest.mark.long

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "lr_scheduler_type": "linear"}


class StopAfter(TrainerCallback):  # type: ignore[misc]
    """Ends the training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= state.global_step == self.step


@pytest.mark.parametrize(("first", "then"), [("theirs", "ours"), ("ours", "theirs")])
def test_a_run_goes_on_in_the_other_trainer(tmp_path: Path, first: str, then: str) -> None:
    whole = trainer("theirs", tmp_path / "whole", SAVING)
    whole.train()
    begun = trainer(first, tmp_path, SAVING, further=lambda: {"callbacks": [StopAfter(2)]})
    begun.train()
    resumed = trainer(then, tmp_path, SAVING)
    resumed.train(resume_from_checkpoint=str(Path(begun.args.output_dir) / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert_same(whole, resumed)


def test_the_best_checkpoint_is_the_one_trl_finds_and_is_loaded(tmp_path: Path) -> None:
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "best",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_rewards/margins",
        "greater_is_better": True,
        "max_steps": 4,
    }
    theirs, ours = trained(tmp_path, options, further=lambda: {"eval_dataset": chat_pairs(4, seed=2)})
    assert_same(theirs, ours)
    assert ours.state.best_metric == pytest.approx(theirs.state.best_metric, rel=1e-3)
    best = Path(ours.state.best_model_checkpoint)
    assert best.name == Path(theirs.state.best_model_checkpoint).name
    saved = load_file(best / "adapter_model.safetensors")
    assert torch.equal(torch.cat([v.flatten() for v in saved.values()]).sort().values, learned(ours).sort().values)


def test_a_checkpoint_holds_what_trls_holds(tmp_path: Path) -> None:
    theirs, ours = trained(tmp_path, {**SAVING, "save_steps": 4})
    files = [
        {str(path.relative_to(t.args.output_dir)) for path in Path(t.args.output_dir).rglob("*") if path.is_file()}
        for t in (theirs, ours)
    ]
    own = {"fingerprint.json", "manifest.json", "execution-0.json"}
    assert files[1] == files[0] | {f"checkpoint-4/{name}" for name in own}
    folder = Path(ours.args.output_dir) / "checkpoint-4"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 4
    model = PeftModel.from_pretrained(model_for(tiny_tokenizer()), folder, is_trainable=True)
    reloaded = trainer("ours", tmp_path / "again", model=lambda: model, peft=lambda: None)
    assert torch.equal(learned(reloaded), learned(ours))
    arguments = torch.load(folder / "training_args.bin", weights_only=False)
    assert isinstance(arguments, trl.DPOConfig) and arguments.max_steps == 4


class TestPrecision:
    """Numbers of 16 bits: both trainers stay as near to the float32 run as such numbers allow."""

    @staticmethod
    def logps(run: Any) -> torch.Tensor:
        return torch.tensor([[e["logps/chosen"], e["logps/rejected"]] for e in run.state.log_history if "loss" in e])

    @pytest.mark.parametrize("whole", [False, True], ids=["autocast", "bf16 model"])
    @pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
    def test_bfloat16(self, tmp_path: Path, whole: bool, full: bool) -> None:
        dtype = torch.bfloat16 if whole else torch.float32

        def makers(of: torch.dtype) -> dict[str, Any]:
            def model() -> Any:
                return tiny_model("llama", vocab_size=len(tiny_tokenizer()), dtype=of)

            return {
                "model": model,
                "peft": lambda: None if full else lora(),
                "further": lambda: {"ref_model": model()} if full else {},
            }

        rate = {"learning_rate": 1e-3}
        exact = trainer("ours", tmp_path / "exact", rate, **makers(torch.float32))
        exact.train()
        theirs, ours = trained(tmp_path, {**rate, "bf16": True}, **makers(dtype))
        assert_on_step(ours)
        assert {p.dtype for p in ours.model.parameters()} == {p.dtype for p in theirs.model.parameters()}
        errors = [(self.logps(run) - self.logps(exact)).abs().max() for run in (theirs, ours)]
        assert 0 < errors[1] <= 2 * errors[0] + 0.1
        assert losses(ours)[0] == pytest.approx(0.6931472, abs=2e-3)
        assert learned(ours).isfinite().all()

    def test_evaluation_in_bfloat16(self, tmp_path: Path) -> None:
        options = {"bf16_full_eval": True, "eval_strategy": "steps", "eval_steps": 3}
        theirs, ours = trained(tmp_path, options, further=lambda: {"eval_dataset": chat_pairs(4, seed=1)})
        assert_same(theirs, ours)
        their, our = theirs.evaluate(), ours.evaluate()
        assert {p.dtype for p in ours.model.parameters()} == {torch.bfloat16}
        for name in ("eval_loss", "eval_rewards/chosen", "eval_logps/chosen"):
            assert our[name] == pytest.approx(their[name], rel=2e-2, abs=5e-2), name


def test_names_in_logs_are_trls_and_more(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "logging_first_step": True, "logging_steps": 2}
    theirs, ours = trained(tmp_path, options, further=lambda: {"eval_dataset": chat_pairs(4, seed=1)})
    for their, our in zip(theirs.state.log_history, ours.state.log_history, strict=True):
        assert our.keys() - their.keys() <= {"train_reference_reused", "train_reference_computed"}
        assert their.keys() <= our.keys()
        assert {type(value) for value in our.values()} <= {int, float}


@pytest.mark.parametrize("strategy", ["end", "every_save"])
def test_push_to_hub(tmp_path: Path, strategy: str) -> None:
    options = {
        **SAVING,
        "push_to_hub": True,
        "hub_model_id": "someone/learned",
        "hub_strategy": strategy,
        "hub_private_repo": True,
        "hub_always_push": True,
    }
    pushed: list[dict[str, bytes]] = []
    for whose in ("theirs", "ours"):
        with hub_stand_in() as hub:
            run = trainer(whose, tmp_path / strategy, options)
            run.train()
            run.push_to_hub(dataset_name="pairs", tags=["mine"])
            pushed.append(hub.files("someone/learned"))
            assert hub.private["someone/learned"]
    assert pushed[0].keys() == pushed[1].keys() >= {"adapter_model.safetensors", "README.md", "tokenizer.json"}
    card = pushed[1]["README.md"].decode()
    assert "- dpo" in card and "- mine" in card
    assert isinstance(run, DPOTrainer)
    (tmp_path / "pulled").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "pulled" / name).write_bytes(pushed[1][name])
    model = PeftModel.from_pretrained(model_for(tiny_tokenizer()), tmp_path / "pulled", is_trainable=True)
    values = torch.cat([p.detach().flatten() for _, p in sorted(model.named_parameters()) if p.requires_grad])
    assert torch.equal(values, learned(run))
