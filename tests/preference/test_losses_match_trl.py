"""The losses against TRL's own code, run on prescribed log-probabilities of random ragged batches."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.trainer.dpo_trainer import DPOTrainer

from wishbone.preference import (
    COUPLED,
    F_DIVERGENCE_LOSSES,
    LOSSES,
    REFERENCE_FREE,
    LossParameters,
    PairScores,
    ld_weights,
    preference_loss,
    wpo_weight,
)
from wishbone.preference.divergence import DIVERGENCES

TRL_LOSSES = sorted(set(LOSSES) - REFERENCE_FREE - {"dpop", "rdpo"})
HP = LossParameters(beta=0.2, label_smoothing=0.1, discopop_tau=0.3)


@dataclass
class Batch:
    """Per-token values of sequences [chosen..., rejected...], shape [2 * pairs, length - 1], 0 where not scored."""

    completion_mask: Tensor
    logps: Tensor
    ref_logps: Tensor
    log_sum_sq_probs: Tensor


def ragged_batch(pairs: int = 5, seed: int = 0) -> Batch:
    """Prompts of 0 to 4 tokens, completions of 2 to 9, padded. Without a prompt the first token is not scored."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, 5, (pairs,), generator=generator)
    prompts[0] = 0
    prompts = prompts.repeat(2)[:, None]
    completions = torch.randint(2, 10, (2 * pairs, 1), generator=generator)
    position = torch.arange(14)[None]
    completion_mask = ((position >= prompts) & (position < prompts + completions)).long()
    scored = completion_mask[:, 1:]
    ref_logps = -2 * torch.rand(scored.shape, generator=generator) * scored
    logps = (ref_logps - 0.4 * torch.randn(scored.shape, generator=generator)).clamp(max=-1e-3) * scored
    log_sum_sq_probs = -2 * torch.rand(scored.shape, generator=generator)
    return Batch(completion_mask, logps.requires_grad_(), ref_logps, log_sum_sq_probs)


class Answering(torch.nn.Module):
    """A model with TRL's fused head whose answer is prescribed."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs: Tensor, log_sum_sq_probs: Tensor) -> None:
        super().__init__()
        self.answer = SimpleNamespace(
            log_probs=log_probs,
            log_sum_sq_probs=log_sum_sq_probs,
            entropy=torch.zeros_like(log_probs),
            mean_logits=torch.zeros_like(log_probs),
            is_top1=torch.zeros_like(log_probs, dtype=torch.bool),
        )

    def forward(self, **inputs: Any) -> SimpleNamespace:
        return self.answer


def trl_loss(
    batch: Batch, names: list[str], weights: list[float], hp: LossParameters, ld_alpha: float | None, weighting: bool
) -> Tensor:
    """TRL's `_compute_loss` on a trainer whose models answer with the batch's values."""

    trainer = SimpleNamespace(
        model=Answering(batch.logps, batch.log_sum_sq_probs),
        ref_model=Answering(batch.ref_logps, batch.log_sum_sq_probs),
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather=lambda value: value, gather_for_metrics=lambda value: value
        ),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=hp.discopop_tau),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        loss_types=names,
        loss_weights=weights,
        beta=hp.beta,
        label_smoothing=hp.label_smoothing,
        f_divergence_type=hp.f_divergence,
        f_alpha_divergence_coef=hp.f_alpha,
        ld_alpha=ld_alpha,
        use_weighting=weighting,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros_like(batch.completion_mask),
        "attention_mask": torch.ones_like(batch.completion_mask),
        "completion_mask": batch.completion_mask,
    }
    loss: Tensor = DPOTrainer._compute_loss(trainer, trainer.model, inputs, return_outputs=False)
    return loss


def pair_scores(batch: Batch, ld_alpha: float | None, weighting: bool) -> PairScores:
    scored_mask = batch.completion_mask[:, 1:]
    scored = scored_mask.sum(1)
    chosen_scored, rejected_scored = scored.float().chunk(2)
    chosen_lengths, rejected_lengths = batch.completion_mask.sum(1).float().chunk(2)
    token_weights = torch.ones_like(batch.logps)
    if ld_alpha is not None:
        siblings = scored.roll(len(scored) // 2)
        token_weights = ld_weights(scored_mask.cumsum(1) - 1, siblings[:, None], ld_alpha)
    aligned = ((batch.logps - batch.log_sum_sq_probs) * scored_mask).sum(1) / scored
    chosen_logps, rejected_logps = (batch.logps * token_weights).sum(1).chunk(2)
    ref_chosen_logps, ref_rejected_logps = (batch.ref_logps * token_weights).sum(1).chunk(2)
    chosen_plain_logps, rejected_plain_logps = batch.logps.sum(1).chunk(2)
    return PairScores(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        chosen_plain_logps=chosen_plain_logps,
        rejected_plain_logps=rejected_plain_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        chosen_scored=chosen_scored,
        rejected_scored=rejected_scored,
        mean_chosen_scored=chosen_scored.mean().expand(len(chosen_scored)),
        weights=wpo_weight(*aligned.chunk(2)) if weighting else None,
    )


def assert_same(
    names: list[str],
    weights: list[float],
    hp: LossParameters = HP,
    *,
    ld_alpha: float | None = None,
    weighting: bool = False,
    gradients: bool = True,
) -> None:
    for seed in range(3):
        batch = ragged_batch(seed=seed)
        theirs = trl_loss(batch, names, weights, hp, ld_alpha, weighting)
        ours = preference_loss(pair_scores(batch, ld_alpha, weighting), hp, names, weights).mean()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        if gradients:
            scored = batch.completion_mask[:, 1:]
            expected, actual = (torch.autograd.grad(loss, batch.logps)[0] * scored for loss in (theirs, ours))
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ld_alpha", [None, 0.0, 0.6])
@pytest.mark.parametrize("name", TRL_LOSSES)
def test_every_loss(name: str, ld_alpha: float | None) -> None:
    assert len(TRL_LOSSES) == 15
    assert_same([name], [1.0], ld_alpha=ld_alpha)


@pytest.mark.slow
@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d != "reverse_kl"])
@pytest.mark.parametrize("name", sorted(F_DIVERGENCE_LOSSES))
def test_every_divergence(name: str, divergence: str) -> None:
    for alpha in (0.5, 1.0, 1.8):
        assert_same(
            [name], [1.0], LossParameters(beta=0.2, label_smoothing=0.1, f_divergence=divergence, f_alpha=alpha)
        )


def test_several_losses() -> None:
    assert_same(["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])


@pytest.mark.parametrize("name", sorted(set(TRL_LOSSES) - COUPLED - {"sft"}))
def test_weighted_by_wpo(name: str) -> None:
    # TRL multiplies in place: `sft` cannot be (an expanded tensor), and the backward of `hinge` then fails
    assert_same([name], [0.7], weighting=True, gradients=name != "hinge")


def test_cpo_and_simpo() -> None:
    cpo_trainer = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    batch = ragged_batch()
    scores = pair_scores(batch, None, False)
    common = {"accelerator": SimpleNamespace(device="cpu"), "alpha": 0.0, "beta": 2.0, "label_smoothing": 0.0}
    hp = LossParameters(beta=2.0, simpo_gamma=0.9, cpo_alpha=0.7)

    trainer = SimpleNamespace(**common, loss_type="sigmoid")
    preference, _, _ = cpo_trainer.cpo_loss(trainer, scores.chosen_plain_logps, scores.rejected_plain_logps)
    chosen_mask = batch.completion_mask[:5, 1:].bool()
    nll = -batch.logps[:5][chosen_mask].mean()
    torch.testing.assert_close(LOSSES["cpo"](scores, hp).mean(), preference.mean() + 0.7 * nll)

    trainer = SimpleNamespace(**common, loss_type="simpo", simpo_gamma=0.9)
    chosen = scores.chosen_plain_logps / scores.chosen_scored
    rejected = scores.rejected_plain_logps / scores.rejected_scored
    expected, _, _ = cpo_trainer.cpo_loss(trainer, chosen, rejected)
    torch.testing.assert_close(LOSSES["simpo"](scores, hp), expected)


def test_odds_ratio_of_orpo() -> None:
    orpo_trainer = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
    scores = pair_scores(ragged_batch(), None, False)
    chosen = scores.chosen_plain_logps / scores.chosen_scored
    rejected = scores.rejected_plain_logps / scores.rejected_scored
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    log_likelihood, *_ = orpo_trainer.odds_ratio_loss(trainer, chosen, rejected)
    torch.testing.assert_close(LOSSES["orpo"](scores, LossParameters(orpo_lambda=0.3)), -chosen - log_likelihood)
