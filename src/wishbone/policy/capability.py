"""Which form a model can be run in: tested before the first step.

A row with a shared prefix is right only if every layer's attention goes through our hook with the window that its
configuration promises, and every recurrent layer starts branches from the state at their stem's end. So the model is
run on two short synthetic pairs as a packed row and as plain sequences; where hidden states differ by more than
rounding, plain sequences are used. The same run compares our head with the model's own logits, so that a family's
unknown scaling is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
import transformers
from torch import Tensor

from wishbone.data.batch import TokenizedPair
from wishbone.data.pair_images import ImageAttention
from wishbone.errors import RequestError, one_line
from wishbone.fused.recurrence import PrefixRecurrence
from wishbone.fused.row_layout import LayoutNotPassedDown
from wishbone.model.eight_bit_linear import inputs_not_rounded
from wishbone.policy.attention_hook import MaskNotPassedDown, record_calls
from wishbone.policy.layer_types import attending_layers, unknown_layer_types, why_not_all_attend
from wishbone.policy.layerwise import worst_layer
from wishbone.policy.long_sequences import reason_from_long_sequences
from wishbone.policy.policy import Form, Policy

IMPOSSIBLE = (TypeError, ValueError, AttributeError, LookupError, RuntimeError, AssertionError)
"""What models raise that cannot run in one row."""

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Relative error of hidden states that rounding explains in a model that is not deep.

Norms round to float32 inside even in float64 models.
"""
TOLERANCE_OF_LAYER = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Relative error of one layer's output that rounding explains, by which deep models are judged (`layerwise.py`)."""
LEFT_OUT = 4
"""Tokens that are left out of a trial sequence to see whether those before them notice."""
OTHER_TOKENS = 0.5
"""Relative error of hidden states after which layers are not looked at: other tokens were seen."""


@dataclass(frozen=True)
class Capability:
    """The form to run a model in and, where it is not the fast one, the reason in one line.

    Attributes:
        layout_as_mask, image_attention: as for `Policy`, in the fast form.
    """

    form: Form
    reason: str | None = None
    layout_as_mask: bool = False
    image_attention: ImageAttention = "causal"


def choose_form(
    model: torch.nn.Module,
    *,
    max_length: int | None = None,
    row_multiple: int = 1,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    images: Sequence[TokenizedPair] = (),
) -> Capability:
    """Return the fastest form that gives the model's own results.

    Args:
        model: the model as it will be trained; nothing of it is changed.
        max_length: longest sequence of the run in tokens, for position encodings that change with length.
        row_multiple: as for `Policy`.
        autocast: the context that the model's `forward` enters by itself, if somebody wrapped it so.
        images: pairs of the run that have images; empty if it has none.
    """
    plain = Policy(model, form="plain")
    config = plain.causal_lm.config.get_text_config()
    reason = _reason_from_config(config, max_length, plain.recurrence)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), inputs_not_rounded(model):
            whole = Policy(model, form="own_logits")
            own = _own_logps(whole)
            if (changed := _reason_from_later_tokens(whole, own)) is not None:
                return Capability("own_logits", changed)
            if plain.decoder is plain.causal_lm:
                return Capability("own_logits", "its layers cannot be run without its output head")
            try:
                head = _logps(Policy(model, form="plain", autocast=autocast))
            except torch.OutOfMemoryError:
                raise
            except IMPOSSIBLE:  # a head with layers of its own before the output embedding
                head = torch.full_like(own, torch.nan)
            with autocast():
                tolerance = TOLERANCE[plain.computing_dtype]
            if not _relative_error(head, own) <= tolerance:
                reason = _reason_from_length(whole, own)
                reason = reason or "its logits are not a scaled product with the output embedding"
                return Capability("own_logits", reason)
            for layout_as_mask in (False, True) if reason is None else ():
                against = _reason_from_trial(model, config, row_multiple, layout_as_mask)
                if against is None and not images:
                    return Capability("shared_prefix", layout_as_mask=layout_as_mask)
                for image_attention in get_args(ImageAttention) if against is None else ():
                    options: dict[str, Any] = {"layout_as_mask": layout_as_mask, "image_attention": image_attention}
                    differs = _reason_from_images(plain, Policy(model, row_multiple=row_multiple, **options), images)
                    if differs is None:
                        return Capability("shared_prefix", **options)
                    against = against or differs
                reason = reason or against
    finally:
        model.train(was_training)
    return Capability("plain", reason)


def varies_in_training(model: torch.nn.Module) -> bool:
    """Return whether the model's results vary from run to run in training mode, as with dropout.

    A shared prompt would share its random numbers. Nothing of the model or of the random state is changed.
    """
    policy = Policy(model, form="own_logits")
    devices = [policy.device] if policy.device.type == "cuda" else []
    was_training = model.training
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            first, second = _own_logps(policy), _own_logps(policy)
    finally:
        model.train(was_training)
    return not _relative_error(second, first) <= TOLERANCE[policy.computing_dtype]


def _reason_from_config(config: Any, max_length: int | None, recurrence: PrefixRecurrence) -> str | None:
    """Return what in the configuration or in the kind of layers rules out the shared prefix, or None."""
    if recurrence.left:
        why = next(iter(recurrence.left.values()))
        return f"its recurrent layers cannot start a completion from the state at the prompt's end ({why})"
    if foreign := unknown_layer_types(config, recurrent=bool(recurrence.covered)):
        return f"it has layers of type {', '.join(foreign)}, which cannot take the shared-prefix mask"
    return reason_from_long_sequences(config, max_length)


def _reason_from_trial(model: torch.nn.Module, config: Any, row_multiple: int, layout_as_mask: bool) -> str | None:
    """Return how packed and plain runs disagree, or None."""
    packed = Policy(model, row_multiple=row_multiple, layout_as_mask=layout_as_mask)
    plain = Policy(model, form="plain")
    with record_calls() as calls:
        try:
            got = _hidden(packed)
        except MaskNotPassedDown:
            return "its layers do not hand the shared-prefix mask down to their attention"
        except LayoutNotPassedDown:
            return "it does not hand the shared-prefix layout down to its recurrent layers"
        except NotImplementedError as error:
            return f"its layers cannot take the shared-prefix mask ({one_line(error)})"
        except torch.OutOfMemoryError:
            raise
        except IMPOSSIBLE as error:
            return f"its layers do not run without a mask of their own ({one_line(error)})"
    attending = attending_layers(packed.causal_lm, config, recurrent=bool(packed.recurrence.covered))
    if (why := why_not_all_attend(calls, config, attending)) is not None:
        return why
    expected = _hidden(plain)
    difference, dtype = _relative_error(got, expected), plain.computing_dtype
    if difference <= TOLERANCE[dtype]:
        return None
    if dtype in TOLERANCE_OF_LAYER and difference <= OTHER_TOKENS:
        try:
            worst = worst_layer(packed, plain, trial_pairs(config.vocab_size))
        except IMPOSSIBLE:
            worst = None  # its layers take or give something else than hidden states
        if worst is not None and worst <= TOLERANCE_OF_LAYER[dtype]:
            return None
    return f"a shared prefix changes its hidden states (relative difference {difference:.1e})"


def _reason_from_images(plain: Policy, packed: Policy, pairs: Sequence[TokenizedPair]) -> str | None:
    """Return how a row of pairs with images and plain sequences disagree, or None."""
    try:
        got = _hidden(packed, pairs)
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, *IMPOSSIBLE) as error:
        return f"its layers do not run with images in a shared prefix ({one_line(error)})"
    difference = _relative_error(got, _hidden(plain, pairs))
    if not difference <= TOLERANCE[plain.causal_lm.dtype]:
        return f"images in a shared prefix change its hidden states (relative difference {difference:.1e})"
    return None


def trial_pairs(vocabulary: int) -> list[TokenizedPair]:
    """Return two pairs of synthetic tokens; all sequences are equally long, so that the plain run needs no padding."""
    ids = [(7 + 13 * i * i + 5 * i) % vocabulary for i in range(100)]
    first = TokenizedPair(ids[:14] + ids[20:31], ids[:14] + ids[40:51], 14, 14)
    second = TokenizedPair(ids[50:57] + ids[60:78], ids[50:57] + ids[80:98], 7, 7)
    return [first, second]


def _hidden(policy: Policy, pairs: Sequence[TokenizedPair] = ()) -> Tensor:
    """Hidden states [scored, hidden_size] of some pairs, by default of the trial pairs."""
    batch = policy.collate(pairs or trial_pairs(policy.causal_lm.config.get_text_config().vocab_size))
    with policy.running():
        return policy.hidden_states(batch)


def _logps(policy: Policy, pairs: Sequence[TokenizedPair] = ()) -> Tensor:
    """Log-probabilities [scored] of some pairs, by default of the trial pairs."""
    batch = policy.collate(pairs or trial_pairs(policy.causal_lm.config.get_text_config().vocab_size))
    with policy.running():
        return policy.token_scores(batch).logps


def _own_logps(policy: Policy) -> Tensor:
    """Log-probabilities [scored] of the trial pairs by the model's own forward pass.

    Raises:
        RequestError: it does not run on text alone.
    """
    try:
        return _logps(policy)
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, *IMPOSSIBLE) as error:
        model = policy.causal_lm
        raise RequestError(
            f"{type(model).__name__} does not run on text alone in transformers {transformers.__version__}: its own "
            f"forward pass ends in {type(error).__name__} ({one_line(error)}). See that its config.json is whole; "
            "otherwise another version of transformers may run it, or take another model"
        ) from error


def _reason_from_later_tokens(policy: Policy, whole: Tensor) -> str | None:
    """Return that log-probabilities of tokens depend on what comes after them, tokens or padding, or None.

    The first completion of the trial pairs is run again without its last tokens, which then are padding. What a causal
    model says of the tokens before them stays.

    Args:
        policy: in the form "own_logits".
        whole: its log-probabilities of the trial pairs.
    """
    first, second = trial_pairs(policy.causal_lm.config.get_text_config().vocab_size)
    scored = len(first.chosen) - first.chosen_start
    kept = scored - LEFT_OUT
    shorter = replace(first, chosen=first.chosen[:-LEFT_OUT])
    found = _logps(policy, [shorter, second])
    error = _relative_error(found[:kept], whole[:kept])
    if not error > TOLERANCE[policy.computing_dtype]:
        return None
    return (
        "its log-probabilities of a token depend on tokens or padding that come later (relative difference "
        f"{error:.1e}), so a loss depends on what else is in a batch, in TRL as well"
    )


def _reason_from_length(policy: Policy, whole: Tensor) -> str | None:
    """Return that log-probabilities of tokens depend on how many come after them, or None.

    The trial pairs are run again in shorter rows. ProphetNet gives other numbers then, whatever the tokens are.

    Args:
        policy: in the form "own_logits".
        whole: its log-probabilities of the trial pairs.
    """
    pairs = trial_pairs(policy.causal_lm.config.get_text_config().vocab_size)
    shorter = slice(-LEFT_OUT)
    cut = [replace(pair, chosen=pair.chosen[shorter], rejected=pair.rejected[shorter]) for pair in pairs]
    kept = len(cut[0].chosen) - cut[0].chosen_start
    error = _relative_error(_logps(policy, cut)[:kept], whole[:kept])
    if not error > TOLERANCE[policy.computing_dtype]:
        return None
    return (
        f"its log-probabilities of a token depend on how many come later (relative difference {error:.1e}), so a loss "
        "depends on what else is in a batch, in TRL as well"
    )


def _relative_error(value: Tensor, expected: Tensor) -> float:
    value, expected = value.double(), expected.double()
    return float((value - expected).norm() / expected.norm())
