"""Images in the stem: the vision tower runs once a row, and its embeddings lie once in the stem of their pair.

A family's own forward pass embeds the tokens of a row, runs the tower over its images, and writes the results over the
placeholder tokens, where a row holds them once a pair. Features that are added to later layers as well (deepstack,
Qwen3-VL) find these tokens in the same way. So the row goes through the family's forward, and only the function that
runs the tower (`get_image_features`) is replaced while it does:

- The tower has attention of its own, and knows nothing of the row's layout.
- A frozen tower keeps nothing for a backward pass.
- In a pass of policy and reference, a tower without adapters runs once for both, one with adapters once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from wishbone.fused.instance_attributes import InstanceAttributes
from wishbone.fused.lockstep import together
from wishbone.fused.lockstep_calls import only_adapters
from wishbone.fused.lora_layer import OFF
from wishbone.fused.parts import text_layers
from wishbone.policy.lockstep import LockstepReference

TOWER = "get_image_features"
"""The method of transformers' models that runs the tower and projects its results."""


class ImageStem:
    """Runs a model's vision tower as a row needs it.

    Args:
        causal_lm: the model without its adapters' wrapper.
        decoder: the same without its output head.

    Attributes:
        towers: configurations of the model's parts that are not for text.
        layers: their layers that can be recomputed.
    """

    def __init__(self, causal_lm: PreTrainedModel, decoder: Any) -> None:
        name, text = text_layers(causal_lm)
        self._decoder = decoder
        inside = {id(module) for module in text.modules()}
        around = _on_the_way(causal_lm, name)
        head = causal_lm.get_output_embeddings()
        around |= set() if head is None else {id(module) for module in head.modules()}
        for_text, modules = inside | around, list(causal_lm.modules())
        self._outside = [m for m in modules if id(m) not in for_text]
        of_text = {id(m.config) for m in modules if id(m) in for_text and hasattr(m, "config")}
        own = {id(m.config): m.config for m in self._outside if isinstance(m, PreTrainedModel)}
        self.layers = [module for module in self._outside if isinstance(module, GradientCheckpointingLayer)]
        self.towers = [config for key, config in own.items() if key not in of_text]

    @property
    def is_found(self) -> bool:
        """Whether the model names the function that runs its tower."""
        return callable(getattr(self._decoder, TOWER, None))

    @contextmanager
    def running(self, reference: LockstepReference | None = None) -> Iterator[None]:
        """Context of the forward pass of a row with images.

        Args:
            reference: the reference that is computed in the same pass.
        """
        replaced = InstanceAttributes()
        replaced.add(self._decoder, TOWER, self._tower(getattr(self._decoder, TOWER), reference))
        with replaced.replaced():
            yield

    def _tower(self, run: Callable[..., Any], reference: LockstepReference | None) -> Callable[..., Any]:
        """The method that runs the tower, within `running`."""
        trained = any(p.requires_grad for module in self._outside for p in module.parameters(recurse=False))
        adapters = [vars(module) for module in self._outside if OFF in vars(module)]

        def features(*args: Any, prefix_layout: Any = None, **kwargs: Any) -> Any:
            with nullcontext() if trained else torch.no_grad():
                policy = run(*args, **kwargs)
            if reference is None or not adapters:
                return policy
            with torch.no_grad(), only_adapters(adapters, reference.adapters):
                reference_output = run(*args, **kwargs)
            return _both(policy, reference_output, reference.adapters)

        return features


def _on_the_way(model: nn.Module, name: str) -> set[int]:
    """Return the ids of a model, of the module of this name in it, and of those in between."""
    found = {id(model)}
    for part in name.split(".") if name else ():
        model = getattr(model, part)
        found.add(id(model))
    return found


def _both(policy: Any, reference: Any, adapters: tuple[str, ...]) -> Any:
    """Return what a tower returned for policy and reference as one, fields and lists of them alike."""
    if isinstance(policy, ModelOutput):
        parts = {name: _both(value, reference[name], adapters) for name, value in policy.items()}
        return type(policy)(**parts)
    if isinstance(policy, list | tuple):
        return type(policy)(_both(one, other, adapters) for one, other in zip(policy, reference, strict=True))
    return together(policy, reference, adapters)
