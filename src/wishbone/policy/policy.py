"""A causal language model as the training step needs it: pairs in, log-probabilities of completion tokens out.

`Policy` runs the backbone once over a batch, picks the hidden states that predict completion tokens and hands them with
the output embedding to `token_logps`. The logits of the prompt, of padding and of whole rows never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from wishbone.data.batch import PlainBatch, PreferenceBatch, SharedPrefixBatch, TokenizedPair
from wishbone.fused.layers import FusedLayers
from wishbone.model.host_embedding import compute_device
from wishbone.ops.token_logps import TokenScores, scores_of_logits, token_logps
from wishbone.policy.activations import Activations
from wishbone.policy.attention_hook import attention_configs, shared_prefix_attention
from wishbone.policy.cuda_graphs import RecordedPasses

Form = Literal["shared_prefix", "plain", "own_logits"]
"""How pairs are run: one row with a shared prefix; two plain rows a pair; plain rows through the model's own logits."""

HEAD_CHUNK_TOKENS = 256
SMALL_CHUNK_BYTES = 128 * 2**20
SMALL_TILE_TOKENS = 1024


class Policy:
    """Runs one model over batches of pairs.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        form: how pairs are run; `choose_form` in `policy/capability.py` finds out.
        row_multiple: rows are padded to a multiple of this many tokens.
        autocast: context of the forward pass, for mixed precision.
        activations: which rows keep their activations; None leaves the model's layers as they are.
        fused: the model's layers as they run within `running()`; None leaves them as they are.
        head_chunk_bytes: memory for the logits of the tokens that are scored at a time; None is the op's own choice.
        tile_tokens: tokens, about, of which MLPs hold intermediates at once; None holds those of a whole row.

    Attributes:
        recorded: passes that are replayed instead of run; None runs every row.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        form: Form = "shared_prefix",
        row_multiple: int = 1,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        activations: Activations | None = None,
        fused: FusedLayers | None = None,
        head_chunk_bytes: int | None = None,
        tile_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.form = form
        self.row_multiple = row_multiple
        self._autocast = autocast
        self.activations = activations
        self.fused = fused
        self.head_chunk_bytes = head_chunk_bytes
        self.tile_tokens = tile_tokens
        self.recorded: RecordedPasses | None = None
        causal_lm = model.get_base_model() if isinstance(model, PeftModel) else model
        assert isinstance(causal_lm, PreTrainedModel)
        self.causal_lm = causal_lm
        self._configs = attention_configs(causal_lm)
        text_config = causal_lm.config.get_text_config()
        self.softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
        self.logit_scale = _logit_scale(text_config)

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return compute_device(self.causal_lm)

    def save_memory(self) -> None:
        """Hold less at a time from now on, for a few launches more: logits of fewer tokens, MLPs in tiles."""
        self.head_chunk_bytes, self.tile_tokens = SMALL_CHUNK_BYTES, SMALL_TILE_TOKENS

    def collate(self, pairs: Sequence[TokenizedPair]) -> PreferenceBatch:
        """Return the pairs as tensors in the form that this policy runs."""
        if self.form == "shared_prefix":
            return SharedPrefixBatch.from_pairs(pairs, self.device, padded_length=self._padded)
        return PlainBatch.from_pairs(pairs, self.device)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context for forward passes and for the backward passes that recompute them."""
        with (
            shared_prefix_attention(self._configs) if self.form == "shared_prefix" else nullcontext(),
            self.fused.running(tile_tokens=self.tile_tokens) if self.fused else nullcontext(),
        ):
            yield

    def hidden_states(self, batch: PreferenceBatch) -> Tensor:
        """Return last hidden states of the tokens that predict, [scored, hidden_size]; call it within `running()`."""
        hidden = None
        if self.recorded is not None and isinstance(batch, SharedPrefixBatch):
            hidden = self.recorded.hidden_states(batch)
        hidden = self.backbone(batch) if hidden is None else hidden
        return hidden.flatten(0, 1).index_select(0, batch.predictor_index)

    def backbone(self, batch: PreferenceBatch) -> Tensor:
        """Return last hidden states of all tokens, [rows, tokens, hidden_size]; call it within `running()`."""
        hidden: Tensor = self.causal_lm.base_model(**batch.model_inputs, use_cache=False).last_hidden_state
        return hidden

    def token_scores(self, batch: PreferenceBatch, *, statistics: bool = True) -> TokenScores:
        """Return the scores of all scored tokens of `batch`, [scored]; call it within `running()`.

        Args:
            batch: the pairs.
            statistics: whether anyone reads more of the scores than `logps`.
        """
        with self._autocast(), self.activations.of_row(batch.tokens) if self.activations else nullcontext():
            if self.form == "own_logits":
                logits = self.causal_lm(**batch.model_inputs, use_cache=False).logits
                logits = logits.flatten(0, 1).index_select(0, batch.predictor_index)
                return scores_of_logits(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.targets)
            return self._head_scores(self.hidden_states(batch), batch.targets, statistics)

    def _padded(self, tokens: int) -> int:
        """The length of a row of so many tokens with its padding; only passes of training are recorded."""
        tokens += -tokens % self.row_multiple
        if self.recorded is None or not torch.is_grad_enabled():
            return tokens
        return self.recorded.padded(tokens)

    def _head_scores(self, hidden: Tensor, targets: Tensor, statistics: bool) -> TokenScores:
        head = self.causal_lm.get_output_embeddings()
        if isinstance(head, (BaseTunerLayer, ModulesToSaveWrapper)):
            return self._scores_through_module(head, hidden, targets)
        dtype = _compute_dtype(head.weight)
        return token_logps(
            hidden.to(head.weight.device, dtype),
            head.weight.to(dtype),
            targets,
            bias=None if head.bias is None else head.bias.to(dtype),
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            chunk_bytes=self.head_chunk_bytes,
            statistics=statistics,
        )

    def _scores_through_module(self, head: nn.Module, hidden: Tensor, targets: Tensor) -> TokenScores:
        """Score through a head that is more than one matrix (an adapter on it), recomputing each chunk in backward."""

        def chunk_scores(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            logits = head(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.logit_scale
            if self.softcap is not None:
                logits = self.softcap * torch.tanh(logits / self.softcap)
            return tuple(vars(scores_of_logits(logits, targets)).values())

        parts = [
            checkpoint(chunk_scores, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(HEAD_CHUNK_TOKENS), targets.split(HEAD_CHUNK_TOKENS), strict=True)
        ]
        return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of the head's matrix product: autocast's where it is on, else the weight's."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _logit_scale(text_config: Any) -> float:
    """Factor that the model family puts on its logits; `capability.py` verifies it against the model's own logits."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(text_config, name, None) is not None:
            return float(getattr(text_config, name))
    divisor = getattr(text_config, "logits_scaling", None)
    return 1.0 if divisor is None else 1.0 / float(divisor)
