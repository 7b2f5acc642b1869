"""A remembered reference gives the reference's own values, and computes only what nobody knows."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_model, tiny_pairs
from torch import Tensor

from wishbone.data.batch import PreferenceBatch, TokenizedPair, truncated_pair
from wishbone.engine.execution import UNLIMITED, Execution
from wishbone.errors import RequestError
from wishbone.policy.policy import Form, Policy
from wishbone.reference import cache as cache_module
from wishbone.reference.cache import CachedReference, cached_reference
from wishbone.reference.identity import reference_identity
from wishbone.reference.reference import AdapterDisabled, ReferencePolicy, SeparateModel
from wishbone.reference.store import ReferenceStore


class Watched:
    """The real reference, with a note of the pairs that it was asked for."""

    def __init__(self, inner: ReferencePolicy) -> None:
        self.inner = inner
        self.asked: list[list[TokenizedPair]] = []

    def logps(self, batch: PreferenceBatch, execution: Execution = UNLIMITED) -> Tensor:
        self.asked.append(list(batch.pairs))
        return self.inner.logps(batch, execution)


PAIRS = [truncated_pair(*pair) for pair in tiny_pairs(8)]


def lora(dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    model = get_peft_model(tiny_model("llama", dtype), LoraConfig(r=4, target_modules="all-linear", **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def reference(
    path: Path, *, ld_alpha: float | None = None, dtype: torch.dtype = torch.float32, form: Form = "shared_prefix"
) -> tuple[Policy, Watched, CachedReference]:
    """A policy, its reference, and that reference with a store before it."""
    policy = Policy(lora(dtype), form=form)
    inner = Watched(AdapterDisabled(policy, ld_alpha=ld_alpha))
    return (
        policy,
        inner,
        CachedReference(inner, policy, ReferenceStore(path), lambda: reference_identity(policy), ld_alpha),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "references.sqlite"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["shared_prefix", "plain", "own_logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_the_live_ones_bit_by_bit(path: Path, dtype: torch.dtype, form: Form) -> None:
    policy, inner, kept = reference(path, dtype=dtype, form=form)
    live = AdapterDisabled(policy).logps(policy.collate(PAIRS))
    assert live.dtype == dtype
    first = kept.logps(policy.collate(PAIRS))
    again = kept.logps(policy.collate(PAIRS))
    assert (kept.reused, kept.computed) == (8, 8)
    kept.flush()
    policy, inner, warm = reference(path, dtype=dtype, form=form)
    stored = warm.logps(policy.collate(PAIRS))
    assert inner.asked == []
    assert (warm.reused, warm.computed) == (8, 0)
    for values in (first, again, stored):
        assert values.dtype == dtype and torch.equal(values, live)


def test_only_missing_pairs_are_computed_and_land_in_their_places(path: Path) -> None:
    policy, inner, kept = reference(path)
    live = AdapterDisabled(policy).logps(policy.collate(PAIRS))
    known = [1, 2, 5]
    kept.logps(policy.collate([PAIRS[i] for i in known]))
    mixed = [7, 5, 0, 1, 3]
    values = kept.logps(policy.collate([PAIRS[i] for i in mixed]))
    assert inner.asked == [[PAIRS[i] for i in known], [PAIRS[i] for i in (7, 0, 3)]]
    assert (kept.reused, kept.computed) == (2, 6)
    expected = live.view(-1, 2)[mixed].flatten()
    assert values == pytest.approx(expected, abs=1e-5, rel=1e-6)


def test_nothing_is_written_before_a_flush_and_a_pair_that_waits_is_known(path: Path) -> None:
    policy, inner, kept = reference(path)
    kept.logps(policy.collate(PAIRS[:3]))
    assert ReferenceStore(path).get([kept._key(pair) for pair in PAIRS]) == {}
    kept.logps(policy.collate(PAIRS[2:5]))
    assert [len(asked) for asked in inner.asked] == [3, 2]
    kept.flush()
    assert len(ReferenceStore(path).get([kept._key(pair) for pair in PAIRS])) == 5


def test_a_pair_twice_in_a_batch(path: Path) -> None:
    policy, _, kept = reference(path)
    batch = policy.collate([PAIRS[0], PAIRS[1], PAIRS[0]])
    live = AdapterDisabled(policy).logps(batch)
    for _ in range(2):
        assert kept.logps(batch) == pytest.approx(live, abs=1e-5)
        kept.flush()
    assert len(ReferenceStore(path).get([kept._key(pair) for pair in PAIRS])) == 2


def test_whatever_a_value_depends_on_is_part_of_its_key(path: Path) -> None:
    policy, inner, kept = reference(path)
    pair = truncated_pair([5, 6, 7], [8, 9, 10, 11], [12, 13])
    others = [
        truncated_pair([5, 6, 7], [8, 9, 10, 11], [12, 13], max_length=6),
        truncated_pair([5, 6, 7], [8, 9, 10, 11], [12, 14]),
        truncated_pair([5, 6, 4], [8, 9, 10, 11], [12, 13]),
        truncated_pair([5, 6, 7], [12, 13], [8, 9, 10, 11]),
        truncated_pair([5, 6, 7, 8], [9, 10, 11], [12, 13]),
        replace(pair, chosen_start=4),
        replace(pair, rejected_start=4),
        TokenizedPair(pair.chosen + pair.rejected[:1], pair.rejected[1:], 3, 2),
    ]
    kept.logps(policy.collate([pair]))
    for other in others:
        kept.logps(policy.collate([other]))
        assert inner.asked[-1] == [other]
    assert kept.reused == 0
    kept.logps(policy.collate([replace(pair, ref_chosen_logps=-1.0, ref_rejected_logps=-2.0)]))
    assert kept.reused == 1


@pytest.mark.slow
def test_ld_alpha_is_part_of_the_key(path: Path) -> None:
    found = []
    for alpha in (None, 0.0, 0.5, 1.0):
        policy, inner, kept = reference(path, ld_alpha=alpha)
        found.append(kept.logps(policy.collate(PAIRS)))
        assert len(inner.asked) == 1
        kept.flush()
    assert not torch.equal(found[1], found[2])
    policy, inner, kept = reference(path, ld_alpha=0.5)
    assert torch.equal(kept.logps(policy.collate(PAIRS)), found[2])
    assert inner.asked == []


def test_training_of_the_adapter_does_not_matter_and_other_base_weights_do(path: Path) -> None:
    policy, _inner, kept = reference(path)
    kept.logps(policy.collate(PAIRS))
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    kept.begin()
    kept.logps(policy.collate(PAIRS))
    assert (kept.reused, kept.computed) == (8, 8)
    with torch.no_grad():
        policy.causal_lm.get_input_embeddings().weight[7, 3] += 0.5
    kept.begin()
    values = kept.logps(policy.collate(PAIRS))
    assert (kept.reused, kept.computed) == (8, 16)
    assert torch.equal(values, AdapterDisabled(policy).logps(policy.collate(PAIRS)))


def test_values_that_are_not_finite_are_computed_every_time(path: Path) -> None:
    policy, _inner, kept = reference(path)
    with torch.no_grad():
        policy.causal_lm.get_output_embeddings().weight[:] = math.inf
    for _ in range(2):
        assert not torch.isfinite(kept.logps(policy.collate(PAIRS))).any()
        kept.flush()
    assert (kept.reused, kept.computed) == (0, 16)


def test_the_dictionary_has_a_bound_and_the_store_answers_for_the_rest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MOST_IN_MEMORY", 3)
    policy, _inner, kept = reference(path)
    for _ in range(2):
        for pair in PAIRS:
            kept.logps(policy.collate([pair]))
        kept.flush()
    assert len(kept._memory) == 3
    assert (kept.reused, kept.computed) == (8, 8)


def test_a_store_that_is_off_leaves_the_dictionary(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    policy, _inner, kept = reference(tmp_path / "directory")
    for _ in range(2):
        kept.logps(policy.collate(PAIRS))
        kept.flush()
    assert (kept.reused, kept.computed) == (8, 8)


def test_a_separate_model_and_a_bare_adapter_share_the_values_of_one_base_model(path: Path) -> None:
    policy, _, kept = reference(path)
    values = kept.logps(policy.collate(PAIRS))
    kept.flush()
    frozen, trained = Policy(tiny_model("llama")), Policy(tiny_model("llama", seed=1))
    separate = cached_reference(SeparateModel(frozen), frozen, asked=str(path), trained=trained.model)
    assert isinstance(separate, CachedReference)
    assert torch.equal(separate.logps(trained.collate(PAIRS)), values)
    assert (separate.reused, separate.computed) == (8, 0)


def test_a_separate_model_of_another_form_computes_what_is_missing(path: Path) -> None:
    frozen, trained = Policy(tiny_model("llama"), form="plain"), Policy(tiny_model("llama", seed=1))
    live = SeparateModel(frozen).logps(trained.collate(PAIRS))
    separate = cached_reference(SeparateModel(frozen), frozen, asked=str(path), trained=trained.model)
    separate.logps(trained.collate(PAIRS[:3]))
    assert separate.logps(trained.collate(PAIRS)) == pytest.approx(live, abs=1e-5)


def ask(model: PeftModel, asked: str, **options: Any) -> ReferencePolicy:
    policy = Policy(model)
    return cached_reference(AdapterDisabled(policy), policy, asked=asked, trained=model, **options)


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WISHBONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WISHBONE_REFERENCE_STORE")
    model = lora()
    places = {}
    for variable in ("", "off", str(tmp_path / "of the variable")):
        monkeypatch.setenv("WISHBONE_REFERENCE_STORE", variable)
        for asked in ("auto", "off", str(tmp_path / "asked for")):
            kept = ask(model, asked)
            places[variable, asked] = kept.store.path if isinstance(kept, CachedReference) else None
    own = tmp_path / "asked for"
    assert list(places.values()) == [
        *(tmp_path / "cache" / "references.sqlite", None, own),
        *(None, None, own),
        *(tmp_path / "of the variable", None, own),
    ]
    assert list(tmp_path.iterdir()) == []  # nothing is made before the first value


def test_a_reference_that_changes_is_not_remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unfrozen = lora()
    unfrozen.get_base_model().model.norm.weight.requires_grad_(True)
    with_biases = get_peft_model(
        tiny_model("qwen2"), LoraConfig(r=4, target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM")
    )
    cases = [
        (unfrozen, {}, "some of its weights are trained"),
        (with_biases, {}, "some of its weights are trained"),
        (lora(), {"moves": True}, "it follows the policy"),
    ]
    for model, options, reason in cases:
        with caplog.at_level(logging.INFO, logger="wishbone"):
            assert isinstance(ask(model, "auto", **options), AdapterDisabled)
        assert reason in caplog.messages[-1]
        with pytest.raises(RequestError, match=f"{reason}; set it to 'auto' or 'off'"):
            ask(model, str(tmp_path / "store"), **options)


def test_weights_that_are_not_in_memory_cannot_be_told_from_others() -> None:
    model = lora()
    model.get_base_model().model.layers[1].mlp.to("meta")
    assert isinstance(ask(model, "auto"), AdapterDisabled)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}}},
    ],
)
def test_positions_that_depend_on_the_batch_are_not_remembered(fields: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model("llama")
    for form, kind in (("plain", SeparateModel), ("shared_prefix", CachedReference)):
        policy = Policy(model, form=form)  # type: ignore[arg-type]
        for name, value in fields.items():
            setattr(model.config, name, value)
        kept = cached_reference(SeparateModel(policy), policy, asked="auto", trained=tiny_model("llama", seed=1))
        assert isinstance(kept, kind)
