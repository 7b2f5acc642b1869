"""Models that FSDP2 shards (`fully_shard`, through accelerate's plugin), inside the step.

accelerate shards a model when training starts. Here it does so when the trainer is constructed, with the same function
and the same settings, so that everything which looks at the model (the trial, fused layers, room for activations) sees
it as it will run. What accelerate finds sharded when training starts it leaves as it is.

Where a base is frozen, all parameters are gathered in the dtype that they rest in: the base in 16 bits, codes of 4 or 8
bits as bytes with their scales, and adapters in float32. So each layer computes what it computes on one GPU. Scales of
NF4 are no parameters and stay whole on each GPU, 1/33 of its codes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, fsdp2_prepare_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from wishbone.errors import RequestError, some_of
from wishbone.model.adapter import train_in_float32

BYTES_BESIDE = 12
"""Bytes of a trained float32 parameter's gradient and Adam's two moments; the parameter itself is there already."""

FOUR = "Params4bit"
"""bitsandbytes' class of weights in 4 bits."""

logger = logging.getLogger(__name__)


def take_plugin_on_cpus(trainer: Any) -> None:
    """Let a run in several processes on CPUs be sharded as its arguments say: accelerate shards on accelerators alone.

    Args:
        trainer: whose accelerator was constructed.
    """
    state, asked = trainer.accelerator.state, trainer.args.fsdp_plugin_args
    if asked is None or trainer.is_fsdp_enabled or state.distributed_type is not DistributedType.MULTI_CPU:
        return
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**asked)
    if state.mixed_precision != "no":
        state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def why_not_sharded_in_step(trainer: Any) -> str | None:
    """Return why a model that FSDP shards must run on TRL's own path, in one phrase with the remedy, or None.

    Args:
        trainer: as TRL constructed it, before its model is sharded.
    """
    if not trainer.is_fsdp_enabled:
        return None
    plugin, model = trainer.accelerator.state.fsdp_plugin, trainer.model
    if plugin.fsdp_version != 2:
        return "FSDP 1 shards the model (fsdp_version: 2 in accelerate's configuration runs in the step)"
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        return "FSDP keeps parameters in host memory (without cpu_offload they run in the step)"
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert isinstance(causal_lm, PreTrainedModel)
    ends = causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()
    if any(isinstance(end, BaseTunerLayer | ModulesToSaveWrapper) for end in ends):
        return "FSDP shards an embedding or output head with an adapter on it (leave both out of target_modules)"
    if trainer.start_values is not None:
        return "FSDP shards parameters that are trained beside the adapter (train the adapter alone)"
    if trainer.args.sync_ref_model:
        return "FSDP shards a reference that moves (leave sync_ref_model out)"
    return None


def shard(trainer: Any) -> None:
    """Shard a trainer's model over its processes, as accelerate's plugin says.

    Raises:
        RequestError: experts in 4 or 8 bits.
    """
    plugin, model = trainer.accelerator.state.fsdp_plugin, trainer.model
    train_in_float32(model)
    _let_codes_be_divided(model)
    if not all(parameter.requires_grad for parameter in model.parameters()):
        plugin.mixed_precision_policy = MixedPrecisionPolicy()  # without casts
    if plugin.activation_checkpointing:  # it would wrap layers that the step recomputes by itself
        plugin.activation_checkpointing = False
        trainer.args.gradient_checkpointing = True
    with _codes_without_gradients():
        fsdp2_prepare_model(trainer.accelerator, model)
    if trainer.args.guard != "off":
        trainer.args.guard = "off"
        if trainer.is_world_process_zero():
            logger.warning(
                "The guard does not watch a sharded model: its answers are of another length in each process."
            )


def gathered_bytes(model: nn.Module) -> int:
    """Return the bytes that a pass of a sharded model and its optimizer take beside the shards, about.

    Two layers are there at once, and all units that are no layers; each process has its part of the optimizer's state.
    """
    layers, rest, trained = [0, 0], 0, 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            trained += getattr(parameter, "_local_tensor", parameter).numel()
    for module in model.modules():
        if not isinstance(module, FSDPModule):
            continue
        own = {id(p): p for p in module.parameters()}
        inner = {
            id(p) for m in module.modules() if m is not module and isinstance(m, FSDPModule) for p in m.parameters()
        }
        size = sum(p.numel() * p.element_size() for key, p in own.items() if key not in inner)
        if hasattr(module, "gradient_checkpointing") and module is not model:
            layers.append(size)
        else:
            rest += size
    return sum(sorted(layers)[-2:]) + rest + BYTES_BESIDE * trained


def _let_codes_be_divided(model: nn.Module) -> None:
    """Make the codes of 4-bit layers plain parameters of bytes; bitsandbytes finds their scales in the layer then.

    accelerate leaves a `Params4bit` of bytes out of what FSDP divides, because that class cannot be divided.
    """
    layers: list[Any] = [
        module for module in model.modules() if type(vars(module)["_parameters"].get("weight")).__name__ == FOUR
    ]
    whole = {id(layer.weight) for layer in layers} | {id(p) for p in model.parameters() if type(p) is nn.Parameter}
    if stacks := [name for name, parameter in model.named_parameters() if id(parameter) not in whole]:
        raise RequestError(
            f"experts in 4 or 8 bits cannot be sharded ({some_of(stacks)}): a stack is one object of codes and scales, "
            "which FSDP cannot divide; run without FSDP (model.sharding: none), where each GPU holds a copy, or load "
            "them in 16 bits"
        )
    for layer in layers:
        layer.quant_state = layer.weight.quant_state
        layer.quant_storage = torch.uint8
        layer.weight = nn.Parameter(layer.weight.data.view(torch.uint8), requires_grad=False)


@contextmanager
def _codes_without_gradients() -> Iterator[None]:
    """Context in which FSDP divides parameters of integers: that of torch 2.11 asks for their gradients at first."""

    def requires_grad_(tensor: DTensor, wanted: bool = True) -> Any:
        return torch.Tensor.requires_grad_(tensor, wanted and tensor.is_floating_point())

    kind: Any = DTensor
    kind.requires_grad_ = requires_grad_
    try:
        yield
    finally:
        del kind.requires_grad_


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has divided a model's parameters."""
    return isinstance(model, FSDPModule)


@contextmanager
def prepared(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Context in which accelerate knows a sharded model, which needs no more preparation to be evaluated."""
    if not is_sharded(model) or accelerator._models:
        yield
        return
    accelerator._models.append(model)
    try:
        yield
    finally:
        accelerator._models.remove(model)
