"""How many tokens a row may hold, and of how many the activations can be kept.

A transformer layer of width H with an MLP of width I keeps about 18 H + 5 I numbers a token for the backward pass: the
norms' inputs and outputs, queries, keys and values before and after rotation, attention and projection outputs, the
adapters' inputs, and gate, up, activation and product of the MLP. For SmolLM2-135M in float32 that is 2.2 MB a token,
where 1.8 MB were measured.
"""

from __future__ import annotations

from typing import Any

ROW_TOKENS = {"cuda": 8192, "cpu": 1024}
"""A GPU is filled by some thousand tokens; a CPU gains nothing from longer rows and pays for them in memory."""

MOST_ROW_TOKENS = 32768
"""Where a GPU's memory holds more with every activation kept, longer rows spare it the launches of a second one."""

SHARE_OF_FREE_MEMORY = {"cuda": 0.7, "cpu": 0.25}
"""A GPU belongs to the run; the memory of a machine is shared with whatever else runs there."""


def token_budget(asked: int | str, device_type: str) -> int:
    """Return the token budget of a row: the number asked for, or for "auto" what suits the kind of device."""
    if asked == "auto":
        return ROW_TOKENS.get(device_type, ROW_TOKENS["cpu"])
    return int(asked)


def activation_bytes(text_config: Any, bytes_a_number: int) -> tuple[int, int]:
    """Return the bytes a token takes with every layer recomputed, and those of each layer kept, by this module's rule.

    Args:
        text_config: the language model's configuration.
        bytes_a_number: of an activation.
    """
    width = text_config.hidden_size
    inner = getattr(text_config, "intermediate_size", None) or 4 * width
    return text_config.num_hidden_layers * width * bytes_a_number, (18 * width + 5 * inner) * bytes_a_number


def activation_room(free_bytes: int, device_type: str) -> float:
    """Return how many bytes the activations of a row may take, of those free once the model is there.

    Args:
        free_bytes: memory free on the device.
        device_type: "cuda" or "cpu".
    """
    return SHARE_OF_FREE_MEMORY.get(device_type, SHARE_OF_FREE_MEMORY["cpu"]) * free_bytes
