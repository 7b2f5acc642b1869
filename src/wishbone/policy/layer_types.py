"""The types of layers that a model's configuration names, and whether the attention of a pass is theirs.

A row with a shared prefix needs every layer to be of a known type: one that attends to all tokens, to a window or to a
chunk, or one that is a recurrence. In a pass each layer that attends calls the attention function equally often, with
the window of its type.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from wishbone.fused.parts import part_of, text_layers
from wishbone.policy.attention_hook import AttentionCall
from wishbone.policy.long_sequences import CHUNKED

ATTENTION = frozenset({"full_attention", "sliding_attention", CHUNKED})
RECURRENCE = frozenset({"conv", "linear_attention", "mamba"})
"""Layers that mix tokens by a recurrence or a convolution and do not attend."""
BESIDE_RECURRENCE = frozenset({"hybrid", "attention", "moe", "mlp"})
"""Further types that models with recurrent layers name: attention beside a recurrence, attention, single tokens."""
WITHOUT_ATTENTION = RECURRENCE | {"moe", "mlp"}


def unknown_layer_types(config: Any, *, recurrent: bool) -> list[str]:
    """Return the types that a configuration names and that cannot take the mask of a row, in order.

    Args:
        config: of the model for text.
        recurrent: whether the model has recurrent layers that run over rows.
    """
    known = ATTENTION | (RECURRENCE | BESIDE_RECURRENCE if recurrent else frozenset())
    return sorted(set(getattr(config, "layer_types", None) or ()) - known)


def attending_layers(causal_lm: PreTrainedModel, config: Any, *, recurrent: bool) -> int:
    """Return how many layers attend; arguments as for `unknown_layer_types`."""
    if not recurrent:
        return int(config.num_hidden_layers)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        return sum(kind not in WITHOUT_ATTENTION for kind in layer_types)
    return sum(part_of(module) == "attention" for module in text_layers(causal_lm)[1].modules())


def why_not_all_attend(calls: list[AttentionCall], config: Any, attending: int) -> str | None:
    """Return how the calls of a pass differ from one call with the right window by each attention layer, or None.

    Args:
        calls: of the attention function, in order. Each layer may have called equally often.
        config: of the model for text.
        attending: layers that attend.
    """
    times, rest = divmod(len(calls), attending) if attending else (1, len(calls))
    if not calls and not times:
        return "its attention cannot be exchanged for one that takes the shared-prefix mask"
    if len(calls) < attending:
        return f"only {len(calls)} of its {attending} layers take the shared-prefix mask"
    if rest:
        return f"its {attending} layers attend {len(calls)} times in a pass, not each equally often"
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return None
    kinds = [kind for kind in layer_types if kind not in WITHOUT_ATTENTION]
    windows = [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    if [call.window for call in calls] != [window for window in windows for _ in range(times)]:
        return "the windows of its layers are not those that its configuration names"
    return None
