"""How a model's modules run in one pass of policy and reference.

`fused/lockstep.py` has the tensors of such a pass. Fused layers take them as they are. Here, other modules with
adapters run twice, once for each, and layers that are recomputed get a checkpoint for both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wishbone.errors import RequestError
from wishbone.fused.instance_attributes import InstanceAttributes, slot_of
from wishbone.fused.layers import FusedLayers
from wishbone.fused.lockstep import Lockstep
from wishbone.fused.lockstep_calls import apart, checkpointed_in_lockstep, only_adapters
from wishbone.fused.lora_layer import OFF
from wishbone.fused.parts import part_of
from wishbone.ops.carried_difference.autograd import difference_of
from wishbone.policy.activations import CHECKPOINT

DIFFERENCE_VARIABLE = "WISHBONE_CARRIED_DIFFERENCE"
"""Environment variable: `on` or `off` instead of what `carries` decides."""

APART = ("experts", "recurrence")
"""Parts that run twice: their kernels depend on the values of tensors, or they mix tokens in unknown code."""


@dataclass(frozen=True)
class LockstepReference:
    """A reference that is the policy's own weights, and so can be computed in one pass with it.

    Attributes:
        adapters: names of the frozen adapters that are on in it; none means the base model.
    """

    adapters: tuple[str, ...] = ()


class LockstepModules:
    """Finds what runs apart in a model.

    Args:
        model: with its adapters.
        layers: those that can be recomputed.
        fused: layers that take policy and reference at once and are switched on now, or None.
        recurrent: modules of the kind "recurrence" whose code runs on policy and reference.

    Raises:
        NotImplementedError: something else has replaced the forward of an adapter's layer, which would run with the
            policy's adapter in the reference, too.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Any],
        fused: FusedLayers | None,
        recurrent: Collection[nn.Module] = (),
    ) -> None:
        self._layers = layers
        self._attributes = InstanceAttributes()
        known = set() if fused is None else fused.switched_on
        inside: set[nn.Module] = set()
        for module in model.modules():
            if module in known or module in inside:
                continue
            if OFF in vars(module) or (part_of(module) in APART and module not in recurrent):
                slot = slot_of(module)
                if slot is None:
                    raise NotImplementedError(f"something else has replaced the forward of a {type(module).__name__}")
                self._attributes.add(module, slot, apart(module, getattr(module, slot)))
                inside.update(module.modules())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context of a forward pass of policy and reference."""
        checkpoints = [vars(layer) for layer in self._layers if layer.gradient_checkpointing]
        before: list[Callable[..., Any]] = [own[CHECKPOINT] for own in checkpoints]
        with self._attributes.replaced():
            try:
                for own in checkpoints:
                    own[CHECKPOINT] = checkpointed_in_lockstep(own[CHECKPOINT])
                yield
            finally:
                for own, checkpoint in zip(checkpoints, before, strict=True):
                    own[CHECKPOINT] = checkpoint


def carries(model: nn.Module, fused: FusedLayers | None) -> bool:
    """Return whether a pass of policy and reference carries what they differ by in a tensor of its own.

    That is where norms run fused and all weights have 16 bits. Frozen weights in 8 or 4 bits carry it on demand: an FP8
    step took 4 % longer with it (docs/log.md), and in float32 there is nothing to gain.

    Args:
        model: the language model.
        fused: its layers, or None.

    Raises:
        RequestError: the environment variable is set to something else than on or off.
    """
    asked = os.environ.get(DIFFERENCE_VARIABLE, "")
    if asked not in ("", "on", "off"):
        raise RequestError(f"{DIFFERENCE_VARIABLE} is {asked!r}, and can be on or off: correct it, or unset it")
    if fused is None or not any(site.part == "norm" and site.why_not is None for site in fused.sites()):
        return False
    sizes = {parameter.dtype.itemsize for parameter in model.parameters() if not parameter.requires_grad}
    return asked == "on" or (asked == "" and sizes == {2})


@contextmanager
def embedding_of_both(embedding: Any, adapters: tuple[str, ...], carry: bool = False) -> Iterator[None]:
    """Context in which a model's embedding gives the embeddings of policy and reference.

    Arguments as `embedded`.

    Raises:
        NotImplementedError: something else has replaced its forward.
    """
    slot = slot_of(embedding)
    if slot is None:
        raise NotImplementedError("something else has replaced the forward of the model's embedding")
    embed, replaced = getattr(embedding, slot), InstanceAttributes()
    replaced.add(embedding, slot, lambda ids: embedded(embedding, ids, adapters, carry, embed))
    with replaced.replaced():
        yield


def embedded(
    embedding: nn.Module,
    input_ids: Tensor,
    adapters: tuple[str, ...],
    carry: bool = False,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Lockstep:
    """Return the embeddings of a row, of policy and reference, [1, tokens, hidden_size].

    Args:
        embedding: the model's, perhaps with an adapter.
        input_ids: [1, tokens].
        adapters: names of those that are on in the reference.
        carry: whether what the two differ by travels in a tensor of its own, through the whole model. Not where the
            reference has adapters: layers would round what two adapters add, and not what they differ by.
        embed: its own forward, where that is replaced.
    """
    embed = embedding if embed is None else embed
    policy = embed(input_ids)
    with torch.no_grad(), reference_of(embedding, adapters):
        reference = embed(input_ids) if _has_adapter(embedding) else policy.detach().clone()
    difference = difference_of(policy, reference) if carry and not adapters else None
    return Lockstep(policy, reference, adapters, difference)


def reference_of(module: nn.Module, adapters: tuple[str, ...]) -> Any:
    """Return a context in which a module is the reference's: with these adapters, or without any."""
    layers = [vars(one) for one in module.modules() if OFF in vars(one)]
    return only_adapters(layers, adapters) if layers else nullcontext()


def of_policy(recorded: Sequence[Tensor]) -> list[Tensor]:
    """Return the policy's outputs among those that transformers recorded in a pass of policy and reference.

    A module that runs apart is recorded twice, first for the policy, then for the reference.
    """
    both = [one.policy for one in recorded if isinstance(one, Lockstep)]
    return both + [one for one in recorded if not isinstance(one, Lockstep)][::2]


def _has_adapter(module: nn.Module) -> bool:
    return any(OFF in vars(one) for one in module.modules())
