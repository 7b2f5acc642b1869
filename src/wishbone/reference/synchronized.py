"""A reference that follows the policy (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656), for adapters.

Every few steps the reference's weights move toward the policy's,

    W_ref <- (1 - a) W_ref + a W,

and with W = W_0 + B A the base W_0 drops out: the reference is W_0 plus a weighted sum of the adapters that the policy
had at each synchronization. So each synchronization adds a frozen copy of the adapter, its B scaled by `a`, and scales
the B of older copies by `1 - a`; the reference is the model with all copies active. This is the equation itself: means
of A and of B would be another model. A copy whose weight has shrunk beyond float32's resolution is dropped.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel

from wishbone.errors import RequestError
from wishbone.model.adapter import copy_adapter, scale_adapter
from wishbone.model.frozen_copy import FROZEN, LEFT_BY_SYNCHRONIZATION, StartValues, without_effect_on_base
from wishbone.policy.policy import Policy
from wishbone.reference.reference import AdapterDisabled

PREFIX = LEFT_BY_SYNCHRONIZATION
NEGLIGIBLE = 1e-8


class SynchronizedAdapter(AdapterDisabled):
    """The policy's base weights with copies of earlier adapters.

    Args:
        policy: a policy around a PEFT model with a LoRA adapter.
        ld_alpha: LD-DPO's weight of the tail of the longer completion, or None.
        start_values: trained parameters of the base; there must be none.

    Raises:
        RequestError: the adapter is more than a product of matrices that is added.
    """

    def __init__(self, policy: Policy, ld_alpha: float | None = None, start_values: StartValues | None = None) -> None:
        super().__init__(policy, ld_alpha=ld_alpha)
        config = self._model.peft_config[self._model.active_adapter]
        trains_more = not isinstance(config, LoraConfig) or config.use_dora or config.modules_to_save
        if trains_more or config.bias != "none" or start_values is not None:
            raise RequestError(
                "sync_ref_model with an adapter needs plain LoRA (no DoRA, no modules_to_save, bias='none', the base "
                "frozen), the form whose earlier versions can be added up; set sync_ref_model=False, or fine-tune all "
                "weights"
            )

    @property
    def adapters(self) -> list[str]:
        """Names of the copies that are the reference now, oldest first; none means the base model."""
        return sorted(
            (name for name in self._model.peft_config if name == FROZEN or name.startswith(PREFIX)), key=_number
        )

    def synchronize(self, mixup: float) -> None:
        """Move the reference toward the policy, `mixup` of the way; 1 makes it the policy."""
        model, trained = self._model, self._model.active_adapter
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        number = 1 + max(map(_number, self.adapters), default=0)
        for name in self.adapters:
            if (1 - mixup) ** (number - _number(name)) < NEGLIGIBLE:
                model.delete_adapter(name)
            else:
                scale_adapter(model, name, 1 - mixup)
        copy = f"{PREFIX}{number}"
        with torch.random.fork_rng(devices=_cuda_devices(model)):
            model.add_adapter(copy, without_effect_on_base(model.peft_config[trained]))
        copy_adapter(model, trained, copy)
        scale_adapter(model, copy, mixup)
        model.set_adapter(trained)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)


def _number(copy: str) -> int:
    """Return at which synchronization a copy was made; 0 for the adapter that training began with."""
    return 0 if copy == FROZEN else int(copy.removeprefix(PREFIX))


def _cuda_devices(model: PeftModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
