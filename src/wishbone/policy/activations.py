"""Activations of a row: kept for the backward pass, recomputed layer by layer, or recomputed with inputs on the host.

Keeping a layer's activations is faster by one forward pass of it; recomputing holds one layer's at a time beside the
layers' inputs; offloading moves these inputs to host memory too (`offload.py`). The gradients are the same. A row of T
tokens in a model of L layers takes

    fixed + T (base + n layer) bytes,    n = layers whose activations are kept, 0 <= n <= L,

and the choice of n is made for every row: as many as fit, so that the one long pair of a data set does not decide the
speed of all others. The last layers are kept: the backward pass frees them before the first recomputed one needs room.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from wishbone.policy.offload import offloaded_activations

Treatment = Literal["keep", "recompute", "offload"]
"""What happens to activations between a layer's forward and backward pass."""


@dataclass(frozen=True)
class Room:
    """Memory for the activations of a row, in bytes.

    Attributes:
        total: what rows may take beyond `fixed`.
        base: bytes a token with every layer recomputed.
        layer: further bytes a token for each layer that is kept.
    """

    total: float
    base: float
    layer: float

    def layers(self, tokens: int) -> int:
        """Return how many layers of a row can be kept; negative if it does not fit even with all recomputed."""
        return int((self.total - tokens * self.base) // max(tokens * self.layer, 1e-9))

    def with_fewer(self, tokens: int, most: int) -> Room:
        """Return the room in which a row keeps a quarter fewer of `most` layers than here, at least one fewer."""
        kept = min(self.layers(tokens), most)
        kept -= max(kept // 4, 1)
        return Room(tokens * (self.base + (kept + 0.5) * self.layer), self.base, self.layer)

    def tokens(self) -> int:
        """Return the tokens of the longest row that fits with every layer recomputed."""
        return int(self.total // max(self.base, 1e-9))


EVERYTHING = Room(total=float("inf"), base=0.0, layer=0.0)
NOTHING = Room(total=0.0, base=0.0, layer=1.0)


class Activations:
    """Keeps, recomputes or offloads the activations of a model's layers.

    Args:
        model: the causal language model whose layers are concerned.
        room: how much a row may take; `EVERYTHING` keeps all layers, `NOTHING` recomputes all, None leaves the layers
            as their owner set them.
        offload: "never", "always", or "as needed": whether the inputs of recomputed layers wait in host memory; as
            needed for rows that do not fit otherwise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        room: Room | None,
        *,
        offload: Literal["never", "as needed", "always"] = "never",
    ) -> None:
        self.room = room
        self.offload = offload
        self.layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if room is not None and model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    @contextmanager
    def of_row(self, tokens: int) -> Iterator[None]:
        """Context of the forward pass of a row of that many tokens."""
        if self.room is None:
            yield
            return
        kept = len(self.layers) if self.room is EVERYTHING else self.room.layers(tokens)
        recomputed = len(self.layers) - max(kept, 0)
        for index, layer in enumerate(self.layers):
            layer.gradient_checkpointing = index < recomputed
        moved = self.offload == "always" or (self.offload == "as needed" and kept < 0)
        with offloaded_activations() if moved and recomputed > 0 else nullcontext():
            yield


def choose_activations(model: nn.Module, treatment: Treatment) -> None:
    """Note on a model how its activations are to be treated in training; the trainer asks `chosen_activations`."""
    assert treatment in get_args(Treatment)
    model.wishbone_activations = treatment  # type: ignore[assignment]


def chosen_activations(model: nn.Module) -> Treatment | None:
    """Return what `choose_activations` noted on a model (an adapter's or its base's), or None."""
    treatment: Treatment | None = getattr(model, "wishbone_activations", None)
    return treatment
