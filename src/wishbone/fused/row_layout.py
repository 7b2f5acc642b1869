"""The layout of the current row, as layers inside the model read it.

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


class LayoutNotPassedDown(TypeError):
    """A model called its recurrent layers without the layout of the row."""


def mask_with_layout(tokens: Tensor, layout: PrefixLayout) -> Tensor:
    """Return a mask of ones, of the shape of `tokens`, that carries the layout of the row to recurrent layers."""
    mask = torch.ones_like(tokens)
    setattr(mask, _CARRIED, layout)
    return mask


def _carried_by(mask: Any) -> PrefixLayout | None:
    """Return the layout that a mask carries, or None."""
    return getattr(mask, _CARRIED, None)


class CurrentRow:
    """The row that is computed now.

    Attributes:
        layout: where its documents lie, or None outside of a layer.
    """

    def __init__(self) -> None:
        self.layout: PrefixLayout | None = None

    def require_layout(self) -> PrefixLayout:
        """Return the layout.

        Raises:
            LayoutNotPassedDown: no layer around was called with it.
        """
        if self.layout is None:
            raise LayoutNotPassedDown("the layers of this model do not pass prefix_layout on")
        return self.layout

    def with_layout_of_call(self, forward: Callable[..., Any], layer: Any = None) -> Callable[..., Any]:
        """Return a forward that sets the layout it is called with while it runs.

        Args:
            forward: of a layer or of its recurrent part.
            layer: a layer that may be recomputed and whose recurrent part is not called with the layout: a
                recomputation that begins inside `forward` sets the layout again.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            given = kwargs.get("prefix_layout") or _carried_by(kwargs.get("attention_mask"))
            with self.with_layout(self.layout if given is None else given):
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
    def with_layout(self, layout: PrefixLayout | None) -> Iterator[None]:
        """Context in which `layout` is set."""
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before

    def _again(self, recompute: Callable[..., Any], layout: PrefixLayout | None) -> Callable[..., Any]:
        """Return a layer's checkpoint function whose recomputation sets the layout again."""

        def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def again(*own: Any, **options: Any) -> Any:
                with self.with_layout(layout):
                    return function(*own, **options)

            return recompute(again, *args, **kwargs)

        return run
