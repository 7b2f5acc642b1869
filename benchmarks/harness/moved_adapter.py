"""An adapter as it is after some training, for times that should not be those of products of zeros."""

from __future__ import annotations

from typing import Any

MOVED = 1e-3
"""Standard deviation of the second factors, about what a thousand steps at a rate of 1e-6 give."""


def move_adapter(model: Any) -> None:
    """Give the second factors of a new adapter small random values in place; always the same ones."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and parameter.requires_grad:
                parameter.normal_(std=MOVED)
