"""Model features that depend on the sequence length: some position encodings, Llama 4's chunks and temperature.

Some position encodings change for all tokens of a pass once a sequence of it is longer than those of pretraining.

Layers with chunks attend to the tokens of their own chunk of 8,192. Layers without rotary embedding multiply queries by

    1 + attn_scale log(1 + floor((position + 1) / floor_scale)),    floor_scale = 8,192

(Nakanishi 2025, "Scalable-Softmax Is Superior for Attention", arXiv:2501.19399), with positions counted through the
row. In sequences of less than a chunk and less than floor_scale tokens the first is causal attention and the second a
factor of 1. A row of several such sequences may be longer, so the temperature is off while it runs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from wishbone.fused.instance_attributes import InstanceAttributes

CHUNKED = "chunked_attention"
TEMPERATURE = "attn_temperature_tuning"
LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""Position encodings that look at the longest sequence that is run."""


def positions_depend_on_length(config: Any) -> bool:
    """Whether a position encoding of a model looks at the longest sequence that is run.

    Args:
        config: of the model for text, with encodings in either spelling, for all layers or by type of layer.
    """
    found: set[str] = set()
    for name in ("rope_parameters", "rope_scaling"):
        rope = getattr(config, name, None) or {}
        for part in (rope, *rope.values()):
            if isinstance(part, dict):
                found |= {str(part.get(key)) for key in ("rope_type", "type")}
    return not LENGTH_DEPENDENT.isdisjoint(found)


def reason_from_long_sequences(config: Any, max_length: int | None) -> str | None:
    """Return why sequences of a run may be too long for a row with a shared prefix, or None.

    Args:
        config: of the model for text.
        max_length: longest sequence of the run in tokens, or None.
    """
    chunk = config.attention_chunk_size if CHUNKED in (getattr(config, "layer_types", None) or ()) else None
    longest = None if chunk is None else int(chunk)
    if getattr(config, TEMPERATURE, False):
        longest = min(config.floor_scale - 1, config.floor_scale if longest is None else longest)
    if longest is not None and (max_length is None or max_length > longest):
        return f"its attention treats sequences of more than {longest} tokens differently, and this run may have some"
    rope = getattr(config, "rope_scaling", None) or getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
    trained = getattr(config, "original_max_position_embeddings", None) or rope.get(
        "original_max_position_embeddings", getattr(config, "max_position_embeddings", None)
    )
    if kind in LENGTH_DEPENDENT and trained and (max_length is None or max_length > trained):
        return f"its {kind} position encoding changes beyond {trained} tokens, sequence by sequence"
    return None


def without_temperature(model: nn.Module) -> InstanceAttributes:
    """Return the switches of attention's temperature, off within `replaced()`; nothing of the model is changed."""
    found = InstanceAttributes()
    for module in model.modules():
        if vars(module).get(TEMPERATURE) and hasattr(module, "floor_scale"):
            found.add(module, TEMPERATURE, False)
    return found
