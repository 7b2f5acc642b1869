"""The reference policy: the one whose log-probabilities the policy's are compared with.

    r(x, y) = beta ( log pi(y|x) - log pi_ref(y|x) )

It is the model that training started from, or another one that the user gave. Its values come from the same weights
with the adapter off, from a frozen copy of an existing adapter, from a separate model, or from values computed
beforehand. Reference-free losses have none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from peft import PeftModel
from torch import Tensor

from wishbone.data.batch import PreferenceBatch
from wishbone.engine.execution import UNLIMITED, Execution
from wishbone.model.frozen_copy import StartValues
from wishbone.ops.to_device import to_device
from wishbone.policy.activations import chosen_activations
from wishbone.policy.lockstep import LockstepReference
from wishbone.policy.policy import Policy
from wishbone.preference.sequence_scores import sequence_scores
from wishbone.reference.adapter_switch import AdapterSwitch, EmptyAdapterCheck


class ReferencePolicy(ABC):
    """Gives log pi_ref(y|x) for every sequence of a batch, shape [2 * pairs], without gradient."""

    @abstractmethod
    def logps(self, batch: PreferenceBatch, execution: Execution = UNLIMITED) -> Tensor:
        """Return the reference log-probabilities of `batch`, computed as `execution` says."""

    def lockstep_reference(self, batch: PreferenceBatch) -> LockstepReference | None:
        """Return what the reference is where one pass should compute it with the policy; None where `logps` should."""
        return None

    def is_the_policy(self) -> bool:
        """Return whether policy and reference are one model at the moment, so that one's values are the other's."""
        return False

    def record(self, batch: PreferenceBatch, logps: Tensor) -> Tensor:
        """Note log-probabilities, [2 * pairs], that a pass of the policy computed, and return those to use."""
        return logps


class AdapterDisabled(ReferencePolicy):
    """The policy's own weights with its adapter off: no second model.

    Args:
        policy: a policy around a PEFT model.
        adapter: name of a frozen adapter to switch to instead of none, for policies that continue an existing adapter.
        ld_alpha: LD-DPO's weight of the tail of the longer completion, or None.
        start_values: trained parameters of the base, which switching adapters does not restore, or None.

    Attributes:
        in_lockstep: whether one pass computes it with the policy; `reference/lockstep.py` finds out whether it can.
    """

    def __init__(
        self,
        policy: Policy,
        adapter: str | None = None,
        ld_alpha: float | None = None,
        start_values: StartValues | None = None,
    ) -> None:
        assert isinstance(policy.model, PeftModel)
        self._policy, self._model, self._adapter, self._ld_alpha = policy, policy.model, adapter, ld_alpha
        self._start_values = start_values
        self._switch = AdapterSwitch(policy.model)
        self._check = EmptyAdapterCheck(policy.model)
        self.in_lockstep = False

    @property
    def adapters(self) -> list[str]:
        """Names of the frozen adapters that are on in the reference; none means the base model."""
        return [] if self._adapter is None else [self._adapter]

    def switch_to(self, adapter: str | None) -> None:
        """Take another frozen adapter, or none: a checkpoint says which one its run had."""
        self._adapter = adapter
        self.in_lockstep = self.in_lockstep and self.switches_by_layer

    def logps(self, batch: PreferenceBatch, execution: Execution = UNLIMITED) -> Tensor:
        """Return the reference log-probabilities of `batch`, [2 * pairs]."""
        with torch.no_grad(), self._switched(), self._policy.running(execution):
            scores = self._policy.token_scores(batch, execution, statistics=False)
            return sequence_scores(scores, batch, self._ld_alpha).logps

    def lockstep_reference(self, batch: PreferenceBatch) -> LockstepReference | None:
        """Return the adapters that are on, if policy and reference run in one pass."""
        return LockstepReference(tuple(self.on())) if self.in_lockstep else None

    def is_the_policy(self) -> bool:
        """Return whether all adapters that are on in either add nothing yet, as before a run's first step.

        Parts of a sharded model are not looked at: its processes must agree.
        """
        if self._start_values is not None or self._policy.sharded or self.on():
            return False
        return self._check.empty_now(self._model.active_adapters)

    @property
    def switches_by_layer(self) -> bool:
        """Whether the reference is the policy but for which adapters are on, as flags of single layers say."""
        return self._start_values is None and (self._switch.by_name if self.adapters else self._switch.by_flag)

    def on(self) -> list[str]:
        """Names of the adapters that are on and add something."""
        adapters = self.adapters
        return [] if not adapters or self._check.empty(adapters) else adapters

    @contextmanager
    def _switched(self) -> Iterator[None]:
        adapters = self.on()
        with (
            self._switch.only(adapters) if adapters else self._switch.off(),
            nullcontext() if self._start_values is None else self._start_values.in_place(),
        ):
            yield


def has_empty_adapter(model: PeftModel) -> bool:
    """Return whether a model of `FastLanguageModel` has an adapter that adds nothing yet: its base is the reference.

    TRL keeps a frozen copy of the adapter that a model comes with. A copy of an empty one would take four bytes for
    each parameter and never be read (0.6 GiB for rank 64 on an 8B model).
    """
    return chosen_activations(model) is not None and EmptyAdapterCheck(model).empty(["default"])


class SeparateModel(ReferencePolicy):
    """A second, frozen model, which may be of another size, form or device than the policy.

    It keeps no activations and has no graphs, so it runs each row at once, whatever the policy's execution.
    """

    def __init__(self, policy: Policy, ld_alpha: float | None = None) -> None:
        self._policy, self._ld_alpha = policy, ld_alpha

    def logps(self, batch: PreferenceBatch, execution: Execution = UNLIMITED) -> Tensor:
        """Return the reference log-probabilities of `batch`, [2 * pairs], on the batch's device."""
        device = batch.input_ids.device
        own = self._policy.collate(batch.pairs)
        with torch.no_grad(), self._policy.running():
            return sequence_scores(self._policy.token_scores(own, statistics=False), own, self._ld_alpha).logps.to(
                device
            )


class Stored(ReferencePolicy):
    """Values computed beforehand, which come with the data (`ref_chosen_logps`, `ref_rejected_logps`)."""

    def logps(self, batch: PreferenceBatch, execution: Execution = UNLIMITED) -> Tensor:
        """Return the stored log-probabilities of `batch`, [2 * pairs], float32."""
        values = [v for pair in batch.pairs for v in (pair.ref_chosen_logps, pair.ref_rejected_logps)]
        return to_device(torch.tensor(values, dtype=torch.float32), batch.input_ids.device)


class NoReference(ReferencePolicy):
    """For reference-free losses: log pi_ref = 0, so rewards are beta log pi(y|x)."""

    def logps(self, batch: PreferenceBatch, execution: Execution = UNLIMITED) -> Tensor:
        """Return zeros, [2 * pairs], float32."""
        return torch.zeros(2 * len(batch.pairs), device=batch.input_ids.device)
