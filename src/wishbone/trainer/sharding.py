"""Models that FSDP2 shards (`fully_shard`, through accelerate's plugin), inside the step.

accelerate shards a model when training starts. Here it does so when the trainer is constructed, with the same function
and the same settings, so that everything which looks at the model (the trial, fused layers, room for activations) sees
it as it will run. What accelerate finds sharded when training starts it leaves as it is.
"""

from __future__ import annotations

import logging
from typing import Any

from accelerate.utils import fsdp2_prepare_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from transformers import PreTrainedModel

from wishbone.errors import RequestError, some_of
from wishbone.model.eight_bit_linear import EightBitLinear

BYTES_BESIDE = 16
"""Bytes of a trained float32 parameter with its gradient and Adam's two moments."""

logger = logging.getLogger(__name__)


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
    if trainer._held is not None:
        return "FSDP shards parameters that are trained beside the adapter (train the adapter alone)"
    if trainer.args.sync_ref_model:
        return "FSDP shards a reference that moves (leave sync_ref_model out)"
    return None


def shard(trainer: Any) -> None:
    """Shard a trainer's model over its processes, as accelerate's plugin says.

    Raises:
        RequestError: weights in 8 bits, or in 4 bits that are stored in a dtype that FSDP would divide.
    """
    plugin, model = trainer.accelerator.state.fsdp_plugin, trainer.model
    _refuse_divided_codes(model)
    if plugin.activation_checkpointing:  # it would wrap layers that the step recomputes by itself
        plugin.activation_checkpointing = False
        trainer.args.gradient_checkpointing = True
    fsdp2_prepare_model(trainer.accelerator, model)
    if trainer.args.guard != "off":
        trainer.args.guard = "off"
        logger.warning("The guard does not watch a sharded model: its answers are of another length in each process.")


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


def _refuse_divided_codes(model: nn.Module) -> None:
    """Refuse weights whose codes FSDP would divide or cast; those in 4 bits stay whole everywhere, which is said."""
    if any(isinstance(module, EightBitLinear) for module in model.modules()):
        raise RequestError(
            "weights in 8 bits cannot be sharded: FSDP would cast codes and scales like numbers; run without FSDP "
            "(wishbone train --gpus N), where each GPU holds a copy, half the size in 16 bits, or load them in 16 bits"
        )
    codes = [p for p in model.parameters() if type(p).__name__ == "Params4bit"]
    stacks = [name for name, p in model.named_parameters() if type(p) is not nn.Parameter and p not in set(codes)]
    if stacks:
        raise RequestError(
            f"experts in 4 or 8 bits cannot be sharded ({some_of(stacks)}); run without FSDP (wishbone train --gpus "
            "N), where each GPU holds a copy, or load them in 16 bits"
        )
    if any(p.dtype.is_floating_point for p in codes):
        raise RequestError(
            "weights in 4 bits with bnb_4bit_quant_storage in a float dtype cannot be sharded here; leave it out and "
            "run without FSDP (wishbone train --gpus N): each GPU then holds a copy, a quarter of the size in 16 bits"
        )
    if codes:
        logger.warning(
            "Weights in 4 bits are not sharded: each of the processes holds all of them (%.1f GiB), as it does without "
            "FSDP.",
            sum(p.nbytes for p in codes) / 2**30,
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has divided a model's parameters."""
    return isinstance(model, FSDPModule)
