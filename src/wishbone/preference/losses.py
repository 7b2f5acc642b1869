"""All losses by name, their properties, and their weighted sum.

    L_i = w_i sum_k lambda_k loss_k(pair i)        w: WPO weight of the pair, lambda: weight of the loss

The training loss is the mean of L_i over the pairs of a batch. Names and values are those of TRL's `loss_type` if TRL
has the loss; TRL does not have `dpop`, `rdpo`, `simpo`, `cpo` and `orpo`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches

from torch import Tensor

from wishbone.config.other_names import NO_LOSS
from wishbone.errors import RequestError
from wishbone.preference import reference_based, reference_free
from wishbone.preference.divergence import DIVERGENCES
from wishbone.preference.scores import LossParameters, PairScores

Loss = Callable[[PairScores, LossParameters], Tensor]

LOSSES: dict[str, Loss] = {
    "sigmoid": reference_based.sigmoid,
    "sigmoid_norm": reference_based.sigmoid_norm,
    "hinge": reference_based.hinge,
    "ipo": reference_based.ipo,
    "exo_pair": reference_based.exo_pair,
    "nca_pair": reference_based.nca_pair,
    "robust": reference_based.robust,
    "bco_pair": reference_based.bco_pair,
    "sppo_hard": reference_based.sppo_hard,
    "aot": reference_based.aot,
    "aot_unpaired": reference_based.aot_unpaired,
    "apo_zero": reference_based.apo_zero,
    "apo_down": reference_based.apo_down,
    "discopop": reference_based.discopop,
    "dpop": reference_based.dpop,
    "rdpo": reference_based.rdpo,
    "sft": reference_free.sft,
    "simpo": reference_free.simpo,
    "cpo": reference_free.cpo,
    "orpo": reference_free.orpo,
}

COUPLED = frozenset({"aot", "aot_unpaired"})
"""Losses of a pair that depend on the other pairs: they need all pairs of the batch in one call."""

REFERENCE_FREE = frozenset({"simpo", "cpo", "orpo"})
"""Methods without a reference. `sft` does not read it either, but is a term added to losses that do."""

F_DIVERGENCE_LOSSES = frozenset({"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"})
"""Losses that allow a divergence other than the reverse KL: they depend only on the difference of the two scores."""


def are_reference_free(names: Sequence[str]) -> bool:
    """Return whether a run with these losses needs no reference."""
    return set(names) <= REFERENCE_FREE | {"sft"} and not set(names) <= {"sft"}


def check_losses(
    names: Sequence[str], weights: Sequence[float] | None, hp: LossParameters, *, use_weighting: bool = False
) -> None:
    """Refuse a combination of losses and hyperparameters that is not defined.

    Args:
        names: losses to add up.
        weights: weight of each; None for 1.
        hp: their hyperparameters.
        use_weighting: whether WPO weights will be applied.

    Raises:
        RequestError: with every problem found.
    """
    chosen = set(names)
    problems = []
    if not names:
        problems.append("no loss was named: name at least one, for example 'sigmoid' (DPO)")
    for name in sorted(chosen - LOSSES.keys()):
        near = get_close_matches(name, LOSSES, n=1)
        meant = NO_LOSS.get(name) or (
            f"did you mean {near[0]!r}? DPO itself is 'sigmoid'" if near else "DPO is 'sigmoid'"
        )
        problems.append(f"loss {name!r} is not known: {meant}; the losses are {', '.join(sorted(LOSSES))}")
    if weights is not None and len(weights) != len(names):
        problems.append(f"{len(weights)} loss weights for {len(names)} losses: give one weight for each loss, or none")
    if hp.f_divergence not in DIVERGENCES:
        problems.append(f"f_divergence {hp.f_divergence!r} is not known: choose one of {', '.join(DIVERGENCES)}")
    elif hp.f_divergence != "reverse_kl" and (unfit := sorted((chosen & LOSSES.keys()) - F_DIVERGENCE_LOSSES)):
        problems.append(
            f"f_divergence {hp.f_divergence!r} is not defined for {', '.join(unfit)}: use 'reverse_kl', "
            f"or only the losses {', '.join(sorted(F_DIVERGENCE_LOSSES))}"
        )
    if use_weighting and (sorting := sorted(chosen & COUPLED)):
        problems.append(
            f"WPO weighting with {', '.join(sorting)}: these losses sort the batch, so a pair's weight would apply to "
            "another pair; turn the weighting off or choose another loss"
        )
    if "exo_pair" in chosen and not 0 < hp.label_smoothing < 1:
        problems.append(
            f"label_smoothing {hp.label_smoothing} with exo_pair: it must be above 0 and below 1; the paper uses 0.001"
        )
    if "robust" in chosen and not 0 <= hp.label_smoothing < 0.5:
        problems.append(
            f"label_smoothing {hp.label_smoothing} with robust: it must be at least 0 and below 0.5, "
            "the share of swapped labels"
        )
    if hp.beta == 0 and (dividing := sorted(chosen & {"ipo", "sppo_hard"})):
        problems.append(f"beta 0 with {', '.join(dividing)}: its target is 1 / (2 beta), so beta must be above 0")
    if "discopop" in chosen and not hp.discopop_tau > 0:
        problems.append(f"discopop_tau {hp.discopop_tau} with discopop: it must be above 0, as a temperature")
    if problems:
        raise RequestError(problems)


def preference_loss(
    scores: PairScores, hp: LossParameters, names: Sequence[str], weights: Sequence[float] | None = None
) -> Tensor:
    """Weighted sum of the losses of each pair; training minimizes its mean over pairs.

    Args:
        scores: the pairs. For a loss in `COUPLED`, all pairs of the batch.
        hp: hyperparameters.
        names: losses, keys of `LOSSES`.
        weights: weight of each loss; None for 1.

    Returns:
        Loss, [pairs], differentiable in the policy's log-probabilities.

    Raises:
        RequestError: as `check_losses`, or a loss needs a reference and `scores` has none.
    """
    check_losses(names, weights, hp, use_weighting=scores.weights is not None)
    if not scores.has_reference and (needing := sorted(set(names) - REFERENCE_FREE - {"sft"})):
        raise RequestError(
            f"{', '.join(needing)} compares with a reference, but there is none: compute the reference's "
            f"log-probabilities, or choose a loss without a reference: {', '.join(sorted(REFERENCE_FREE))}"
        )
    terms = [
        weight * LOSSES[name](scores, hp) for name, weight in zip(names, weights or [1.0] * len(names), strict=True)
    ]
    total = sum(terms[1:], terms[0])
    return total if scores.weights is None else total * scores.weights
