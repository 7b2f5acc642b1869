"""From last hidden states to log-probabilities through a model's output head, frozen, trained or with an adapter.

The head of most models is one matrix, and `token_logps` takes it apart by chunks. A head that has an adapter, or that
is trained as a copy of its own (`modules_to_save`), is called as the module that it is. The reference's scores come
from the same head without what is trained, or from the policy's states and the difference between the two.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from wishbone.fused.lockstep import Lockstep
from wishbone.ops.token_logps import ReferenceStates, TokenScores, scores_of_logits, token_logps
from wishbone.policy.lockstep import reference_of

CHUNK_TOKENS = 256
"""Tokens whose logits are held at a time where the head is a module with an adapter."""


class HeadScores:
    """Scores tokens through the head of a model.

    Args:
        causal_lm: a transformers causal language model, perhaps with adapters in it.

    Attributes:
        softcap: bound of the tanh soft-capping of the logits, or None.
        logit_scale: factor on the logits.
    """

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        self._causal_lm = causal_lm
        text_config = causal_lm.config.get_text_config()
        self.softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
        self.logit_scale = _logit_scale(text_config)

    @property
    def _head(self) -> Any:
        return self._causal_lm.get_output_embeddings()

    def of(
        self,
        hidden: Tensor,
        targets: Tensor,
        chunk_bytes: int | None,
        *,
        statistics: bool,
        reference: ReferenceStates | None = None,
    ) -> TokenScores:
        """Return the scores of tokens, [tokens].

        Args:
            hidden: the states that predict them, [tokens, hidden_size].
            targets: the tokens, [tokens].
            chunk_bytes: memory for the logits of the tokens that are scored at a time; None is the backend's default.
            statistics: whether anyone reads more of the scores than `logps`.
            reference: as in `token_logps`.
        """
        head = self._head
        if _is_wrapped(head):
            return self._through_module(head, hidden, targets)
        dtype = _compute_dtype(head.weight)
        return token_logps(
            self._ready(hidden),
            head.weight.to(dtype),
            targets,
            bias=None if head.bias is None else head.bias.to(dtype),
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            chunk_bytes=chunk_bytes,
            statistics=statistics,
            reference=reference,
        )

    def of_policy_and_reference(
        self, hidden: Lockstep, targets: Tensor, chunk_bytes: int | None, adapters: tuple[str, ...]
    ) -> tuple[TokenScores, TokenScores]:
        """Return the scores of tokens, [tokens], of the policy and of the reference, whose own hold only `logps`.

        Args:
            hidden: the states of both, [tokens, hidden_size] each.
            targets: the tokens, [tokens].
            chunk_bytes: as in `of`.
            adapters: those that the reference has.
        """
        head = self._head
        if hidden.difference is not None and not _is_trained(head):
            states = ReferenceStates.of(*(self._ready(x) for x in hidden.with_difference()[1:]))
            own = self.of(hidden.policy, targets, chunk_bytes, statistics=True, reference=states)
            return own, TokenScores.logps_alone(states.logps)
        with torch.no_grad(), reference_of(head, adapters):
            reference = self.of(hidden.reference, targets, chunk_bytes, statistics=False)
        return self.of(hidden.policy, targets, chunk_bytes, statistics=True), reference

    def _ready(self, hidden: Tensor) -> Tensor:
        """Return hidden states on the device of the head, in the dtype of its product."""
        weight = self._head.weight
        return hidden.to(weight.device, _compute_dtype(weight))

    def _through_module(self, head: nn.Module, hidden: Tensor, targets: Tensor) -> TokenScores:
        """Score through a head that is more than one matrix, and compute the logits of each chunk again in backward."""

        def chunk_scores(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            logits = head(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.logit_scale
            if self.softcap is not None:
                logits = self.softcap * torch.tanh(logits / self.softcap)
            return tuple(vars(scores_of_logits(logits, targets)).values())

        parts = [
            checkpoint(chunk_scores, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
        ]
        return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _is_wrapped(head: nn.Module) -> bool:
    """Whether PEFT has put an adapter or a trained copy around a head."""
    return isinstance(head, (BaseTunerLayer, ModulesToSaveWrapper))


def _is_trained(head: nn.Module) -> bool:
    """Whether a head is trained, or has an adapter."""
    return _is_wrapped(head) or any(parameter.requires_grad for parameter in head.parameters())


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of the head's matrix product: that of autocast where it is on, else that of the weight."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _logit_scale(text_config: Any) -> float:
    """Factor by which the model family scales its logits; `capability.py` checks it against the model's own logits."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(text_config, name, None) is not None:
            return float(getattr(text_config, name))
    divisor = getattr(text_config, "logits_scaling", None)
    return 1.0 if divisor is None else 1.0 / float(divisor)
