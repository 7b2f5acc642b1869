"""The layout of the row that runs, told to the layers that need it.

A model hands the argument `prefix_layout` down to each of its layers and these to their parts, in the forward pass and
when a layer is recomputed in the backward pass. Some releases of transformers call the recurrent part of a layer
without it; then the layer around it was called with it. Models that hand no keyword arguments down hand their mask
down, which can carry the layout (`mask_with_layout`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wishbone.ops.prefix_attention import PrefixLayout

_CARRIED = "wishbone_prefix_layout"
"""The attribute of a mask that holds a layout; a layer that is recomputed is handed the same mask."""

_RECOMPUTE = "_gradient_checkpointing_func"
"""The attribute of a layer of transformers that holds the function by which it is recomputed."""


class LayoutNotHandedDown(TypeError):
    """A model called its recurrent layers without the layout of the row."""


def mask_with_layout(tokens: Tensor, layout: PrefixLayout) -> Tensor:
    """Return a mask of ones, of the shape of `tokens`, that tells recurrent layers the layout of the row."""
    mask = torch.ones_like(tokens)
    setattr(mask, _CARRIED, layout)
    return mask


def _carried_by(mask: Any) -> PrefixLayout | None:
    """Return the layout that a mask carries, or None."""
    return getattr(mask, _CARRIED, None)


class RunningRow:
    """The row that runs at present.

    Attributes:
        layout: where its documents lie, or None outside of a layer.
    """

    def __init__(self) -> None:
        self.layout: PrefixLayout | None = None

    def told(self) -> PrefixLayout:
        """Return the layout.

        Raises:
            LayoutNotHandedDown: no layer around was called with it.
        """
        if self.layout is None:
            raise LayoutNotHandedDown("the layers of this model do not hand prefix_layout down")
        return self.layout

    def told_by(self, forward: Callable[..., Any], layer: Any = None) -> Callable[..., Any]:
        """Return a forward that notes the layout it is called with, for as long as it runs.

        Args:
            forward: of a layer or of its recurrent part.
            layer: a layer that may be recomputed, whose recurrent part is not called with the layout: a recomputation
                that begins inside of `forward` notes the layout again.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            told = kwargs.get("prefix_layout") or _carried_by(kwargs.get("attention_mask"))
            with self.known(self.layout if told is None else told):
                recompute = vars(layer).get(_RECOMPUTE) if layer is not None else None
                if recompute is None:
                    return forward(*args, **kwargs)
                setattr(layer, _RECOMPUTE, self._again(recompute, self.layout))
                try:
                    return forward(*args, **kwargs)
                finally:
                    setattr(layer, _RECOMPUTE, recompute)

        return run

    @contextmanager
    def known(self, layout: PrefixLayout | None) -> Iterator[None]:
        """Context in which the row has a layout."""
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before

    def _again(self, recompute: Callable[..., Any], layout: PrefixLayout | None) -> Callable[..., Any]:
        """Return a layer's function for recomputation in which whatever runs again knows the layout."""

        def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def told(*own: Any, **options: Any) -> Any:
                with self.known(layout):
                    return function(*own, **options)

            return recompute(told, *args, **kwargs)

        return run
