"""The trainer beside TRL's own on the same data: losses, metrics and weights of three optimizer steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl

from trainer.preference_runs import adapter, losses, run
from wishbone import DPOConfig, DPOTrainer

NOT_COMPARED = {
    "num_tokens",
    "epoch",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "total_flos",
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
        {"loss_type": "ipo", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"loss_type": "aot", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"ld_alpha": 0.4},
        {"use_weighting": True},
        {"precompute_ref_log_probs": True},
        {"f_divergence_type": "js_divergence"},
        {"max_length": 40, "truncation_mode": "keep_end"},
        {"max_length": 100},
        {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 5},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "default",
)
def test_same_losses_metrics_and_weights(tmp_path: Path, options: dict[str, object]) -> None:
    theirs = run(trl.DPOTrainer, trl.DPOConfig, tmp_path / "theirs", **options)
    ours = run(DPOTrainer, DPOConfig, tmp_path / "ours", token_budget=150, **options)
    assert ours.preference_step is not None and ours.form_reason is None
    assert len(losses(ours)) == len(losses(theirs)) > 1
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    ragged = options.get("per_device_train_batch_size") == 3
    noise = (
        {"rewards/accuracies"} if options.get("precompute_ref_log_probs") else set()
    )  # of rewards that are 0 but for it
    for mine, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        assert mine.keys() - {"train_reference_reused", "train_reference_computed"} == other.keys()
        for name in other.keys() - NOT_COMPARED - noise - (mine.keys() if ragged else set()):
            tolerance = {"rel": 2e-2, "abs": 3e-2} if name in TOKEN_MEANS else {"rel": 1e-3, "abs": 1e-5}
            assert float(mine[name]) == pytest.approx(float(other[name]), **tolerance), name
    weights = adapter(theirs)
    assert (adapter(ours) - weights).norm() <= 1e-4 * weights.norm()


TOKEN_MEANS = {"entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy"}
"""TRL averages these over micro-batches, each a mean over its tokens; ours are means over all tokens."""
