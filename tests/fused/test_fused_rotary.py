"""Fused rotary embeddings inside whole models, whatever stands around the forward of their attention layers."""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tiny import ATTENTION_FAMILIES, tiny_model
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from wishbone.fused.rotary import FusedRotary
from wishbone.model.adapter import add_adapter
from wishbone.ops.compiled_ahead import handed_over

IDS = torch.tensor([[5, 9, 60, 33, 17, 99, 4, 71, 12, 12, 8]])
OWN: Any = modeling_llama.LlamaAttention


def loss_and_gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_close(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    assert len(got) == len(expected) > 1
    for value, own in zip(got, expected, strict=True):
        assert (value - own).norm() <= tolerance * own.norm()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_loss_and_gradients_are_the_familys_own(family: str, dtype: torch.dtype, tolerance: float) -> None:
    model = add_adapter(tiny_model(family, dtype=dtype), rank=4, seed=0).to(dtype)
    fused = FusedRotary(model, everywhere=True)
    assert len(fused.layers) == model.config.num_hidden_layers
    expected = loss_and_gradients(model)
    with fused.running(), fused.running():
        assert all("forward" in vars(model.get_submodule(name)) for name in fused.layers)
        got = loss_and_gradients(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert_close(got, expected, 2e-6 if family == "cohere" else tolerance)  # Cohere computes in float32
    without = {3} if family == "smollm3" else set()
    for i, (rotary,) in enumerate(fused.layers.values()):
        form = "neighbours with their angles" if family == "cohere" else "halves"
        assert [*rotary.forms.values()] == ([] if i in without else [form])


def test_transformers_and_other_models_stay_as_they_are() -> None:
    before = dict(vars(modeling_llama))
    fused, other = FusedRotary(tiny_model("llama"), everywhere=True), tiny_model("llama", seed=1)
    with fused.running():
        assert dict(vars(modeling_llama)) == before
        assert not any("forward" in vars(module) for module in other.modules())


def test_cpu_models_keep_their_rotary_embeddings_unless_asked() -> None:
    assert FusedRotary(tiny_model("llama")).layers == {}


def renamed(old: str, new: str) -> Callable[[Any], Any]:
    """Like transformers' `deprecate_kwarg`."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def bare(function: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return call


FORWARDS: dict[str, Callable[[Any], Any]] = {
    "its own": lambda forward: forward,
    "a decorator": renamed("old", "new"),
    "a decorator that does not say what it wraps": bare,
    "two decorators": lambda forward: bare(renamed("old", "new")(forward)),
    "torch's decorator": torch.enable_grad(),
    "other names of arguments": lambda _: rewritten("query_states", "queries"),
}


@pytest.mark.parametrize("kind", FORWARDS)
def test_decorators_around_the_forward(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OWN, "forward", FORWARDS[kind](OWN.forward))
    model = tiny_model("llama", dtype=torch.float64)
    expected = loss_and_gradients(model)
    fused = FusedRotary(model, everywhere=True)
    with fused.running():
        assert_close(loss_and_gradients(model), expected)
    assert len(fused.layers) == 2
    assert all(rotary.forms and None not in rotary.forms.values() for (rotary,) in fused.layers.values())


def rewritten(old: str = "", new: str = "", **names: Any) -> Any:
    """The attention layer's forward without its decorators, its text changed, among its module's names and others."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(OWN.forward)))
    source = source[source.index("def forward") :]
    assert old in source
    scope = {**vars(modeling_llama), **names}
    exec("from __future__ import annotations\n" + source.replace(old, new), scope)
    return scope["forward"]


class AsModule(nn.Module):
    """A function as a module, as the package `kernels` makes of what transformers marks for it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return modeling_llama.apply_rotary_pos_emb(*args, **kwargs)


def test_a_function_that_became_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    expected = loss_and_gradients(model)
    monkeypatch.setattr(OWN, "forward", rewritten(apply_rotary_pos_emb=AsModule()))
    fused = FusedRotary(model, everywhere=True)
    with fused.running():
        assert_close(loss_and_gradients(model), expected)
    assert all(rotary.forms and None not in rotary.forms.values() for (rotary,) in fused.layers.values())


@pytest.mark.parametrize("submodule", [False, True])
def test_a_function_that_the_layer_keeps(submodule: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    expected = loss_and_gradients(model)
    attentions = [layer.self_attn for layer in model.model.layers]
    for attention in attentions:
        attention.rotary_fn = AsModule() if submodule else modeling_llama.apply_rotary_pos_emb

    monkeypatch.setattr(OWN, "forward", rewritten("apply_rotary_pos_emb(", "self.rotary_fn("))
    before = [dict(vars(attention)) for attention in attentions]
    fused = FusedRotary(model, everywhere=True)
    with fused.running():
        assert_close(loss_and_gradients(model), expected)
    assert all(rotary.forms and None not in rotary.forms.values() for (rotary,) in fused.layers.values())
    assert [vars(attention) for attention in attentions] == before and len(fused.layers) == 2


def test_a_forward_that_others_set_to_the_classs_own_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kernelize` does so for layers without a kernel; accelerate keeps it as `_old_forward`."""
    model = tiny_model("llama", dtype=torch.float64)
    expected = loss_and_gradients(model)
    first, second = (layer.self_attn for layer in model.model.layers)
    kept = first.forward = MethodType(type(first).forward, first)
    add_hook_to_module(second, AlignDevicesHook(execution_device="cpu"))
    outer = second.forward
    fused = FusedRotary(model, everywhere=True)
    with fused.running():
        assert first.forward is not kept and second.forward is outer
        assert_close(loss_and_gradients(model), expected)
    assert first.forward is kept and second.forward is outer and len(fused.layers) == 2
    assert all(rotary.forms and None not in rotary.forms.values() for (rotary,) in fused.layers.values())


def turned(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)


CALLS: dict[str, Callable[[], Any]] = {
    "by keyword": lambda: rewritten(
        "apply_rotary_pos_emb(query_states, key_states, cos, sin)",
        "apply_rotary_pos_emb(sin=sin, cos=cos, k=key_states, q=query_states)",
    ),
    "with the dimension of heads": lambda: rewritten(
        "apply_rotary_pos_emb(query_states, key_states, cos, sin)",
        "apply_rotary_pos_emb(query_states, key_states, cos, sin, unsqueeze_dim=1)",
    ),
    "with heads behind tokens": lambda: rewritten(
        "query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)",
        "query_states, key_states = (x.transpose(1, 2) for x in apply_rotary_pos_emb("
        "query_states.transpose(1, 2), key_states.transpose(1, 2), cos, sin, 2))",
    ),
    "one at a time": lambda: rewritten(
        "query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)",
        "query_states, key_states = apply_rotary(query_states, cos, sin), apply_rotary(key_states, cos, sin)",
        apply_rotary=lambda x, cos, sin: modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)[0],
    ),
    "under another name": lambda: rewritten("apply_rotary_pos_emb(", "apply_rope(", apply_rope=turned),
}


@pytest.mark.parametrize("kind", CALLS)
def test_calls_of_every_kind_run_fused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    expected = loss_and_gradients(model)
    monkeypatch.setattr(OWN, "forward", CALLS[kind]())
    fused = FusedRotary(model, everywhere=True)
    for _ in range(2):
        with fused.running():
            assert_close(loss_and_gradients(model), expected)
    assert [(site.part, site.why_not) for site in fused.sites()] == [("rotary embedding", None)] * 2
    assert all(rotary.forms and set(rotary.forms.values()) == {"halves"} for (rotary,) in fused.layers.values())


def test_a_helper_of_the_module_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", dtype=torch.float64)
    expected = loss_and_gradients(model)
    forward = rewritten("apply_rotary_pos_emb(", "positioned(")
    exec("def positioned(*args):\n    return apply_rotary_pos_emb(*args)", forward.__globals__)
    monkeypatch.setattr(OWN, "forward", forward)
    fused = FusedRotary(model, everywhere=True)
    with fused.running():
        assert_close(loss_and_gradients(model), expected)
    assert [site.why_not for site in fused.sites()] == [None, None]


class Wrapped:
    """A decorator that returns an object instead of a function."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return functools.partial(self.function, instance)


def scaled(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    q, k = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
    return q * 1.01, k


def of_pair(pair: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor) -> Any:
    return modeling_llama.apply_rotary_pos_emb(*pair, cos, sin)


LEFT: dict[str, tuple[Callable[[], Any], str]] = {
    "wrapped in an object": (lambda: Wrapped(OWN.forward), "wrapped in an object of the class partial"),
    "under a name that says nothing": (
        lambda: rewritten("apply_rotary_pos_emb(", "turned(", turned=turned),
        "LlamaAttention calls no function with a name like apply_rotary_pos_emb",
    ),
    "computing more": (
        lambda: rewritten(apply_rotary_pos_emb=scaled),
        "scaled pairs elements in an unknown way, or computes more than a rotary embedding",
    ),
    "called with other arguments": (
        lambda: rewritten(
            "(query_states, key_states, cos, sin)",
            "((query_states, key_states), cos, sin)",
            apply_rotary_pos_emb=of_pair,
        ),
        "of_pair is called with other arguments than queries, keys, cosines and sines",
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_not_fused_is_named_and_computes_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, reason = LEFT[kind]
    model = tiny_model("llama", dtype=torch.float64)
    monkeypatch.setattr(OWN, "forward", forward())
    expected = loss_and_gradients(model)
    fused = FusedRotary(model, everywhere=True)
    with fused.running():
        assert_close(loss_and_gradients(model), expected, 0.0)
    sites = list(fused.sites())
    assert len(sites) == 2 and all(site.why_not is not None and reason in site.why_not for site in sites)


def test_a_forward_that_somebody_replaced_is_named() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    attention = model.model.layers[0].self_attn
    own = attention.forward
    attention.forward = lambda *args, **kwargs: own(*args, **kwargs)
    expected = loss_and_gradients(model)
    fused = FusedRotary(model, everywhere=True)
    with fused.running():
        assert_close(loss_and_gradients(model), expected)
    assert sorted(str(site.why_not) for site in fused.sites()) == ["None", "something else has replaced their forward"]


def test_a_call_at_positions_that_do_not_turn_decides_nothing() -> None:
    """One token at position 0 is the same in every form; the next call decides."""
    model = tiny_model("cohere", dtype=torch.float64)
    fused = FusedRotary(model, everywhere=True)
    with fused.running(), torch.no_grad():
        model(input_ids=IDS[:, :1], use_cache=False)
        assert not any(rotary.forms for (rotary,) in fused.layers.values())
        model(input_ids=IDS, use_cache=False)
    assert all(set(r.forms.values()) == {"neighbours with their angles"} for (r,) in fused.layers.values())


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_where_values_mean_nothing_nothing_is_learned() -> None:
    """As in the pass that compiles kernels ahead: what comes out of a kernel that was not launched is any number."""
    model = tiny_model("cohere", dtype=torch.float64)
    fused = FusedRotary(model, everywhere=True)
    with fused.running(), torch.no_grad():
        with handed_over():
            model(input_ids=IDS, use_cache=False)
        assert not any(rotary.forms for (rotary,) in fused.layers.values())
        model(input_ids=IDS, use_cache=False)
    assert all(set(r.forms.values()) == {"neighbours with their angles"} for (r,) in fused.layers.values())
