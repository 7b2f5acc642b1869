"""Every loss against its equation in Python floats, its gradient, its limits, and the rules of combining losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from wishbone.errors import RequestError
from wishbone.preference import (
    COUPLED,
    F_DIVERGENCE_LOSSES,
    LOSSES,
    REFERENCE_FREE,
    LossParameters,
    PairScores,
    check_losses,
    ld_weights,
    preference_loss,
    wpo_weight,
)
from wishbone.preference.divergence import DIVERGENCES

HP = LossParameters(
    beta=0.3, label_smoothing=0.12, discopop_tau=0.4, simpo_gamma=0.7, dpop_lambda=5.0, rdpo_alpha=0.05, cpo_alpha=0.8
)
POLICY = ("chosen_logps", "rejected_logps", "chosen_plain_logps", "rejected_plain_logps")


def random_scores(pairs: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> PairScores:
    generator = torch.Generator().manual_seed(seed)

    def normal(mean: float, std: float) -> Tensor:
        return (mean + std * torch.randn(pairs, generator=generator, dtype=torch.float64)).to(dtype)

    def lengths() -> Tensor:
        return torch.randint(3, 40, (pairs,), generator=generator).to(dtype)

    chosen_lengths, rejected_lengths, chosen_scored = lengths(), lengths(), lengths()
    return PairScores(
        chosen_logps=normal(-40, 4),
        rejected_logps=normal(-42, 4),
        chosen_plain_logps=normal(-45, 4),
        rejected_plain_logps=normal(-47, 4),
        ref_chosen_logps=normal(-40, 4),
        ref_rejected_logps=normal(-42, 4),
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        chosen_scored=chosen_scored,
        rejected_scored=rejected_lengths - 1,
        mean_chosen_scored=chosen_scored.mean().expand(pairs),
    )


def scores_at(chosen_logratio: float, rejected_logratio: float, dtype: torch.dtype) -> PairScores:
    """One pair of eight tokens a completion, with these log-ratios against a reference of 0."""
    chosen = torch.tensor([chosen_logratio], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([rejected_logratio], dtype=dtype, requires_grad=True)
    zero, eight = torch.zeros(1, dtype=dtype), torch.full((1,), 8.0, dtype=dtype)
    return PairScores(
        chosen_logps=chosen,
        rejected_logps=rejected,
        chosen_plain_logps=chosen.clamp(max=0.0),
        rejected_plain_logps=rejected.clamp(max=0.0),
        ref_chosen_logps=zero,
        ref_rejected_logps=zero,
        chosen_lengths=eight,
        rejected_lengths=eight,
        chosen_scored=eight,
        rejected_scored=eight,
        mean_chosen_scored=eight,
    )


@dataclass
class Pair:
    """One pair in Python floats."""

    lw: float
    ll: float
    plain_w: float
    plain_l: float
    hw: float
    hl: float
    nw: float
    nl: float
    scored_w: float
    scored_l: float
    mean_scored: float


def as_pairs(scores: PairScores) -> list[Pair]:
    columns = {field.name: getattr(scores, field.name) for field in fields(scores)}
    rows = [
        {name: value[i].item() for name, value in columns.items() if isinstance(value, Tensor)}
        for i in range(len(scores.chosen_logps))
    ]
    return [
        Pair(
            lw=row["chosen_logps"],
            ll=row["rejected_logps"],
            plain_w=row["chosen_plain_logps"],
            plain_l=row["rejected_plain_logps"],
            hw=row["chosen_logps"] - row["ref_chosen_logps"],
            hl=row["rejected_logps"] - row["ref_rejected_logps"],
            nw=row["chosen_lengths"],
            nl=row["rejected_lengths"],
            scored_w=row["chosen_scored"],
            scored_l=row["rejected_scored"],
            mean_scored=row["mean_chosen_scored"],
        )
        for row in rows
    ]


def sig(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def nls(z: float) -> float:
    """-log sigma(z)."""
    return math.log1p(math.exp(-z))


def f_prime(h: float, hp: LossParameters) -> float:
    t = math.exp(h)
    return {
        "reverse_kl": lambda: math.log(t),
        "forward_kl": lambda: 1 - 1 / t,
        "js_divergence": lambda: math.log(2 * t / (t + 1)),
        "alpha_divergence": lambda: (t ** (hp.f_alpha - 1) - 1) / (hp.f_alpha - 1),
    }[hp.f_divergence]()


def exo(z: float, eps: float) -> float:
    q = sig(z)
    return q * math.log(q / (1 - eps)) + (1 - q) * math.log((1 - q) / eps)


def log_odds(mean_logp: float) -> float:
    p = math.exp(mean_logp)
    return math.log(p / (1 - p))


def delta(p: Pair, hp: LossParameters) -> float:
    return f_prime(p.hw, hp) - f_prime(p.hl, hp)


def mean_delta(p: Pair, hp: LossParameters) -> float:
    return f_prime(p.hw, hp) / p.nw - f_prime(p.hl, hp) / p.nl


def textbook_discopop(p: Pair, hp: LossParameters) -> float:
    z = hp.beta * delta(p, hp)
    m = sig(z / hp.discopop_tau)
    return (1 - m) * nls(z) + m * math.exp(-z)


def textbook_cpo(p: Pair, hp: LossParameters) -> float:
    return nls(hp.beta * (p.plain_w - p.plain_l)) - hp.cpo_alpha * p.plain_w / p.mean_scored


def textbook_orpo(p: Pair, hp: LossParameters) -> float:
    mw, ml = p.plain_w / p.scored_w, p.plain_l / p.scored_l
    return -mw + hp.orpo_lambda * nls(log_odds(mw) - log_odds(ml))


TEXTBOOK: dict[str, Callable[[Pair, LossParameters], float]] = {
    "sigmoid": lambda p, hp: nls(hp.beta * delta(p, hp)),
    "sigmoid_norm": lambda p, hp: nls(hp.beta * mean_delta(p, hp)),
    "hinge": lambda p, hp: max(0.0, 1 - hp.beta * delta(p, hp)),
    "ipo": lambda p, hp: (mean_delta(p, hp) - 1 / (2 * hp.beta)) ** 2,
    "exo_pair": lambda p, hp: exo(hp.beta * delta(p, hp), hp.label_smoothing),
    "nca_pair": lambda p, hp: nls(hp.beta * p.hw) + nls(-hp.beta * p.hw) / 2 + nls(-hp.beta * p.hl) / 2,
    "robust": lambda p, hp: (
        ((1 - hp.label_smoothing) * nls(hp.beta * delta(p, hp)) - hp.label_smoothing * nls(-hp.beta * delta(p, hp)))
        / (1 - 2 * hp.label_smoothing)
    ),
    "bco_pair": lambda p, hp: nls(hp.beta * p.hw) + nls(-hp.beta * p.hl),
    "sppo_hard": lambda p, hp: (p.hw - 0.5 / hp.beta) ** 2 + (p.hl + 0.5 / hp.beta) ** 2,
    "apo_zero": lambda p, hp: 1 - sig(hp.beta * p.hw) + sig(hp.beta * p.hl),
    "apo_down": lambda p, hp: sig(hp.beta * p.hw) + 1 - sig(hp.beta * (p.hw - p.hl)),
    "discopop": textbook_discopop,
    "sft": lambda p, hp: -p.plain_w / p.mean_scored,
    "dpop": lambda p, hp: nls(hp.beta * (p.hw - p.hl - hp.dpop_lambda * max(0.0, -p.hw))),
    "rdpo": lambda p, hp: nls(hp.beta * (p.hw - p.hl) + hp.rdpo_alpha * (p.nw - p.nl)),
    "simpo": lambda p, hp: nls(hp.beta * p.plain_w / p.scored_w - hp.beta * p.plain_l / p.scored_l - hp.simpo_gamma),
    "cpo": textbook_cpo,
    "orpo": textbook_orpo,
}


def textbook_aot(scores: PairScores, hp: LossParameters, name: str) -> list[float]:
    pairs = as_pairs(scores)
    if name == "aot":
        first = sorted(p.lw - p.ll for p in pairs)
        second = sorted((p.lw - p.hw) - (p.ll - p.hl) for p in pairs)
    else:
        first, second = sorted(p.hw for p in pairs), sorted(p.hl for p in pairs)
    eps = hp.label_smoothing
    return [
        (1 - eps) * nls(hp.beta * (a - b)) + eps * nls(-hp.beta * (a - b)) for a, b in zip(first, second, strict=True)
    ]


def test_the_losses_are_those_of_trl_and_five_more() -> None:
    assert set(LOSSES) == set(TEXTBOOK) | COUPLED
    assert len(LOSSES) == 20
    assert set(LOSSES) >= COUPLED | REFERENCE_FREE | F_DIVERGENCE_LOSSES


@pytest.mark.parametrize(
    ("name", "divergence"),
    [
        (name, divergence)
        for name in sorted(TEXTBOOK)
        for divergence in (DIVERGENCES if name in F_DIVERGENCE_LOSSES else ["reverse_kl"])
    ],
)
def test_value_is_the_equation(name: str, divergence: str) -> None:
    hp = replace(HP, f_divergence=divergence, f_alpha=0.4)
    scores = random_scores()
    expected = [TEXTBOOK[name](pair, hp) for pair in as_pairs(scores)]
    assert LOSSES[name](scores, hp).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_value_of_sorting_losses_is_the_equation(name: str) -> None:
    scores = random_scores()
    assert LOSSES[name](scores, HP).tolist() == pytest.approx(textbook_aot(scores, HP, name), rel=1e-11)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_is_the_derivative(name: str) -> None:
    scores = random_scores(pairs=4, seed=3)
    inputs = tuple(getattr(scores, field).requires_grad_() for field in POLICY)

    def loss(*tensors: Tensor) -> Tensor:
        return LOSSES[name](replace(scores, **dict(zip(POLICY, tensors, strict=True))), HP)

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", sorted(F_DIVERGENCE_LOSSES - {"sft"}))
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_is_the_derivative_under_every_divergence(name: str, divergence: str) -> None:
    hp = replace(HP, f_divergence=divergence)
    generator = torch.Generator().manual_seed(5)
    chosen, rejected = torch.randn(2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    base = random_scores(pairs=4)
    zero = torch.zeros(4, dtype=torch.float64)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return LOSSES[name](
            replace(base, chosen_logps=chosen, rejected_logps=rejected, ref_chosen_logps=zero, ref_rejected_logps=zero),
            hp,
        )

    assert torch.autograd.gradcheck(loss, (chosen, rejected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize(("chosen", "rejected"), [(500.0, -500.0), (-500.0, 500.0), (-500.0, -500.0), (500.0, 500.0)])
def test_extreme_log_ratios_keep_value_and_gradient_finite(
    name: str, chosen: float, rejected: float, dtype: torch.dtype
) -> None:
    scores = scores_at(chosen, rejected, dtype)
    loss = LOSSES[name](scores, replace(HP, beta=1.0, discopop_tau=0.05))
    assert torch.isfinite(loss).all()
    gradients = torch.autograd.grad(loss.sum(), [scores.chosen_logps, scores.rejected_logps], allow_unused=True)
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "won", "lost"),
    [
        ("sigmoid", 0.0, 1000.0),
        ("sigmoid_norm", 0.0, 125.0),
        ("hinge", 0.0, 1001.0),
        ("ipo", (125 - 0.5) ** 2, (125 + 0.5) ** 2),
        ("exo_pair", -math.log(0.88), -math.log(0.12)),
        ("nca_pair", 250.0, 750.0),
        ("robust", -0.12 * 1000 / 0.76, 0.88 * 1000 / 0.76),
        ("bco_pair", 0.0, 1000.0),
        ("sppo_hard", 2 * 499.5**2, 2 * 500.5**2),
        ("aot", 120.0, 880.0),
        ("aot_unpaired", 120.0, 880.0),
        ("apo_zero", 0.0, 2.0),
        ("apo_down", 1.0, 1.0),
        ("discopop", 0.0, 1000.0),
        ("dpop", 0.0, 3500.0),
        ("rdpo", 0.0, 1000.0),
    ],
)
def test_extreme_log_ratios_reach_the_limit(name: str, won: float, lost: float, dtype: torch.dtype) -> None:
    hp = replace(HP, beta=1.0, discopop_tau=0.05)
    assert LOSSES[name](scores_at(500.0, -500.0, dtype), hp).item() == pytest.approx(won, rel=1e-6, abs=1e-30)
    assert LOSSES[name](scores_at(-500.0, 500.0, dtype), hp).item() == pytest.approx(lost, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dpo_stays_finite_under_every_divergence(divergence: str, dtype: torch.dtype) -> None:
    for chosen, rejected in [(500.0, -500.0), (-500.0, 500.0), (-500.0, -500.0)]:
        scores = scores_at(chosen, rejected, dtype)
        loss = LOSSES["sigmoid"](scores, LossParameters(f_divergence=divergence))
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(scores.chosen_logps.grad).all()
        assert torch.isfinite(scores.rejected_logps.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dpo_of_an_untrained_policy_is_ln_2(divergence: str, dtype: torch.dtype) -> None:
    scores = random_scores(dtype=dtype)
    untrained = replace(scores, ref_chosen_logps=scores.chosen_logps, ref_rejected_logps=scores.rejected_logps)
    loss = LOSSES["sigmoid"](untrained, LossParameters(f_divergence=divergence))
    assert torch.equal(loss, torch.full_like(loss, math.log(2)))


def test_a_step_on_the_gradient_prefers_the_chosen_one() -> None:
    for name in ("sigmoid", "sigmoid_norm", "hinge", "robust", "bco_pair", "apo_zero", "dpop", "rdpo"):
        scores = scores_at(0.0, 0.0, torch.float64)
        LOSSES[name](scores, HP).sum().backward()
        assert scores.chosen_logps.grad.item() < 0 < scores.rejected_logps.grad.item(), name


def test_label_smoothing_is_for_the_losses_that_name_it() -> None:
    scores = random_scores()
    smoothed = {
        name
        for name, loss in LOSSES.items()
        if not torch.equal(loss(scores, HP), loss(scores, replace(HP, label_smoothing=0.3)))
    }
    assert smoothed == {"robust", "exo_pair", "aot", "aot_unpaired"}


def test_rdpo_learns_less_from_a_longer_chosen_completion() -> None:
    def pull(chosen_length: float) -> float:
        scores = scores_at(0.0, 0.0, torch.float64)
        scores = replace(scores, chosen_lengths=torch.tensor([chosen_length], dtype=torch.float64))
        LOSSES["rdpo"](scores, HP).sum().backward()
        return -scores.chosen_logps.grad.item()

    assert pull(80.0) < pull(8.0) < pull(1.0)


def test_dpop_without_penalty_and_rdpo_without_price_are_dpo() -> None:
    scores = random_scores()
    expected = LOSSES["sigmoid"](scores, HP)
    assert torch.equal(LOSSES["dpop"](scores, replace(HP, dpop_lambda=0.0)), expected)
    assert torch.equal(LOSSES["rdpo"](scores, replace(HP, rdpo_alpha=0.0)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_at_the_edges_of_probability(dtype: torch.dtype) -> None:
    scores = scores_at(0.0, 0.0, dtype)
    for mean in (0.0, -1e-12, -1e-6, -0.69, -80.0):
        plain = torch.tensor([8 * mean], dtype=dtype, requires_grad=True)
        loss = LOSSES["orpo"](replace(scores, chosen_plain_logps=plain, rejected_plain_logps=plain), HP)
        assert loss.item() == pytest.approx(-mean + HP.orpo_lambda * math.log(2), rel=1e-6)
        certain = torch.zeros(1, dtype=dtype)
        lost = LOSSES["orpo"](replace(scores, chosen_plain_logps=plain, rejected_plain_logps=certain), HP)
        (gradient,) = torch.autograd.grad(lost.sum(), plain)
        assert torch.isfinite(lost).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_coupled_losses_are_exactly_those_that_cannot_be_computed_in_parts(name: str) -> None:
    scores = random_scores(pairs=6)

    def part(rows: slice) -> PairScores:
        return replace(
            scores,
            **{
                field.name: getattr(scores, field.name)[rows]
                for field in fields(scores)
                if isinstance(getattr(scores, field.name), Tensor)
            },
        )

    whole = LOSSES[name](scores, HP)
    parts = torch.cat([LOSSES[name](part(slice(0, 2)), HP), LOSSES[name](part(slice(2, 6)), HP)])
    assert torch.equal(whole, parts) == (name not in COUPLED)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_reference_is_read_exactly_by_the_losses_that_need_one(name: str) -> None:
    scores = replace(random_scores(), ref_chosen_logps=None, ref_rejected_logps=None)
    if name in REFERENCE_FREE | {"sft"}:
        assert torch.equal(preference_loss(scores, HP, [name]), LOSSES[name](random_scores(), HP))
    else:
        with pytest.raises(RequestError, match=f"{name} compares with a reference"):
            preference_loss(scores, HP, [name])
        with pytest.raises(ValueError, match="no reference"):
            LOSSES[name](scores, HP)


def test_sft_is_the_mean_over_the_tokens_of_the_batch() -> None:
    tokens = [torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-0.5])]
    base = random_scores(pairs=2, dtype=torch.float32)
    scores = replace(
        base,
        chosen_plain_logps=torch.stack([row.sum() for row in tokens]),
        mean_chosen_scored=torch.full((2,), sum(map(len, tokens)) / 2),
    )
    assert LOSSES["sft"](scores, HP).mean().item() == pytest.approx(-torch.cat(tokens).mean().item())
    nothing = replace(scores, chosen_plain_logps=torch.zeros(2), mean_chosen_scored=torch.zeros(2))
    assert LOSSES["sft"](nothing, HP).tolist() == [0.0, 0.0]


def test_sum_of_losses_weighs_losses_and_pairs() -> None:
    scores = replace(random_scores(), weights=torch.rand(7, dtype=torch.float64))
    expected = (0.8 * LOSSES["sigmoid"](scores, HP) + 0.2 * LOSSES["bco_pair"](scores, HP)) * scores.weights
    torch.testing.assert_close(preference_loss(scores, HP, ["sigmoid", "bco_pair"], [0.8, 0.2]), expected)
    twice = preference_loss(replace(scores, weights=None), HP, ["sigmoid", "sigmoid"])
    torch.testing.assert_close(twice, 2 * LOSSES["sigmoid"](scores, HP))


def test_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(RequestError, match="'sigmoyd' is not known: did you mean 'sigmoid'"):
        preference_loss(random_scores(), HP, ["sigmoyd"])
    with pytest.raises(RequestError, match="DPO itself is 'sigmoid'"):
        preference_loss(random_scores(), HP, ["dpo"])


def test_all_problems_of_a_request_come_at_once() -> None:
    hp = LossParameters(f_divergence="js_divergence", label_smoothing=0.0)
    with pytest.raises(RequestError) as error:
        check_losses(["exo_pair", "aot", "hinges"], [1.0], hp, use_weighting=True)
    problems = error.value.problems
    assert len(problems) == 5
    for problem, words in zip(
        problems,
        ["did you mean 'hinge'", "1 loss weights for 3", "is not defined for aot:", "WPO weighting with aot:", "0.001"],
        strict=True,
    ):
        assert words in problem


@pytest.mark.parametrize(
    ("names", "hp", "words"),
    [
        ([], HP, "no loss was named"),
        (["robust"], replace(HP, label_smoothing=0.5), "below 0.5"),
        (["exo_pair"], replace(HP, label_smoothing=1.0), "exo_pair"),
        (["ipo", "sppo_hard"], replace(HP, beta=0.0), "beta 0 with ipo, sppo_hard"),
        (["discopop"], replace(HP, discopop_tau=0.0), "discopop_tau 0.0"),
        (["sigmoid"], replace(HP, f_divergence="kl"), "'kl' is not known"),
        (["simpo"], replace(HP, f_divergence="forward_kl"), "is not defined for simpo"),
    ],
)
def test_meaningless_requests_are_refused(names: list[str], hp: LossParameters, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        check_losses(names, None, hp)


def test_scores_of_wrong_shape_or_dtype_are_refused() -> None:
    scores = random_scores()
    with pytest.raises(ValueError, match=r"ref_chosen_logps is \(7, 1\)"):
        replace(scores, ref_chosen_logps=torch.zeros(7, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"rejected_lengths is .* of torch.int64"):
        replace(scores, rejected_lengths=torch.ones(7, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"float32 or float64, not .* of torch.bfloat16"):
        replace(scores, chosen_logps=torch.zeros(7, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="both be given or both be None"):
        replace(scores, ref_rejected_logps=None)


def test_ld_weights_discount_the_tail_beyond_the_sibling() -> None:
    # chosen has 4 scored tokens, rejected 2
    chosen = ld_weights(torch.arange(4), torch.tensor(2), 0.25)
    rejected = ld_weights(torch.arange(2), torch.tensor(4), 0.25)
    assert chosen.tolist() == [1.0, 1.0, 0.25, 0.25]
    assert rejected.tolist() == [1.0, 1.0]
    several = ld_weights(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[1], [3]]), 0.1, dtype=torch.float64)
    assert several.tolist() == [[1.0, 0.1, 0.1], [1.0, 1.0, 1.0]]


def test_wpo_weight_is_the_product_of_both_and_has_no_gradient() -> None:
    chosen = torch.tensor([-0.5, 0.1], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.5, 0.2], dtype=torch.float64, requires_grad=True)
    weight = wpo_weight(chosen, rejected)
    assert weight.tolist() == pytest.approx([math.exp(-0.5) * math.exp(-1.5), math.exp(0.1) * math.exp(0.2)])
    assert not weight.requires_grad
