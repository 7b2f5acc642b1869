"""A causal language model as the training step needs it: pairs in, log-probabilities of completion tokens out.

`Policy` runs the backbone once over a batch, picks the hidden states that predict completion tokens and hands them to
the output head (`head_scores.py`). The logits of the prompt, of padding and of whole rows never exist.

An `Execution` says how a row is computed: which layers are recomputed, how large the pieces are, whether a CUDA graph
is replayed. Each method takes it as an argument; the policy keeps none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from wishbone.data.batch import PlainBatch, PreferenceBatch, SharedPrefixBatch, TokenizedPair
from wishbone.data.pair_images import ImageAttention
from wishbone.engine.execution import UNLIMITED, Execution
from wishbone.fused.layers import FusedLayers
from wishbone.fused.lockstep import Lockstep
from wishbone.fused.parts import text_layers
from wishbone.fused.recurrence import PrefixRecurrence
from wishbone.fused.row_layout import mask_with_layout
from wishbone.model.host_embedding import compute_device
from wishbone.model.vision_positions import VisionPositions
from wishbone.ops.token_logps import TokenScores, scores_of_logits
from wishbone.policy.activations import activations_of_row, checkpointed_layers, offloads
from wishbone.policy.alibi_attention import alibi_attention
from wishbone.policy.attention_hook import (
    NAME,
    NAME_WITH_MASK,
    attention_configs,
    mask_of_layout,
    shared_prefix_attention,
)
from wishbone.policy.head_scores import HeadScores
from wishbone.policy.image_stem import ImageStem
from wishbone.policy.layer_progress import counted_layers
from wishbone.policy.lockstep import LockstepModules, LockstepReference, carries, embedding_of_both, of_policy
from wishbone.policy.long_sequences import without_temperature
from wishbone.policy.router_logits import RowRouting
from wishbone.policy.sharded import ShardedCalls

Form = Literal["shared_prefix", "plain", "own_logits"]
"""How pairs are run: one row with a shared prefix; two plain rows a pair; plain rows through the model's own logits."""


class BackboneOutput(NamedTuple):
    """What a pass through the backbone gives.

    Attributes:
        hidden: last hidden states of all tokens, [rows, tokens, hidden_size].
        router_logits: the policy's of each layer, [tokens, experts], where they were asked for.
    """

    hidden: Tensor
    router_logits: Sequence[Tensor] | Tensor = ()


class Policy:
    """Runs one model over batches of pairs.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        form: how pairs are run; `choose_form` in `policy/capability.py` finds out.
        row_multiple: rows are padded to a multiple of this many tokens.
        autocast: context of the forward pass, for mixed precision.
        fused: the model's layers as they run within `running()`; None leaves them as they are.
        layout_as_mask: whether the layout of a row reaches its layers as a mask, and not as a keyword argument.
        image_attention: which tokens of an image see each other.
        carry: whether a pass of policy and reference carries what they differ by (`ops/carried_difference`); None is
            what `carries` in `policy/lockstep.py` says.

    Attributes:
        causal_lm: the model without its adapters' wrapper.
        layers: those that can be recomputed, without the layers of vision towers, which text does not run through.
        recurrence: recurrent layers as they run in a row with a shared prefix.
        image_stem: the vision tower, as rows run it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        form: Form = "shared_prefix",
        row_multiple: int = 1,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        fused: FusedLayers | None = None,
        layout_as_mask: bool = False,
        image_attention: ImageAttention = "causal",
        carry: bool | None = None,
    ) -> None:
        self.model = model
        self.form = form
        self.row_multiple = row_multiple
        self.autocast = autocast
        self.fused = fused
        causal_lm = model.get_base_model() if isinstance(model, PeftModel) else model
        assert isinstance(causal_lm, PreTrainedModel)
        self.causal_lm = causal_lm
        self.carry = carries(causal_lm, fused) if carry is None else carry
        self.layers = checkpointed_layers(text_layers(causal_lm)[1])
        self.recurrence = PrefixRecurrence(text_layers(causal_lm)[1])
        self._calls = ShardedCalls(model, causal_lm.get_output_embeddings())
        self._configs = attention_configs(causal_lm)
        self.image_stem = ImageStem(causal_lm, self.decoder)
        self._vision_positions = VisionPositions(self.decoder)
        self._alibi, self._temperature = alibi_attention(causal_lm), without_temperature(causal_lm)
        self._layout_as_mask, self._image_attention = layout_as_mask, image_attention
        self._head = HeadScores(causal_lm)

    @cached_property
    def _lockstep(self) -> LockstepModules:
        return LockstepModules(self.causal_lm, self.layers, self.fused, self.recurrence.covered)

    @property
    def decoder(self) -> Any:
        """The model without its output head, whose output has `last_hidden_state`; the model itself if it has none."""
        model = self.causal_lm
        if model.base_model is not model:
            return model.base_model
        # Llama 4's text model names an attribute as its base that only the model with images has.
        return next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 has divided the model's parameters, so that all processes must run it equally often."""
        return self._calls.sharded

    @property
    def computing_dtype(self) -> torch.dtype:
        """Dtype of matrix products: autocast's where it is on, that in which FSDP gathers weights, else the model's."""
        device = self.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self._calls.gathered_dtype or self.causal_lm.dtype

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return compute_device(self.causal_lm)

    def collate(self, pairs: Sequence[TokenizedPair], execution: Execution = UNLIMITED) -> PreferenceBatch:
        """Return the pairs as tensors in the form that this policy runs, padded to the length of a graph."""
        if self.form == "shared_prefix":
            return SharedPrefixBatch.from_pairs(
                pairs,
                self.device,
                padded_length=lambda tokens: self._padded(tokens, execution),
                prompt_positions=self._vision_positions,
                image_attention=self._image_attention,
            )
        return PlainBatch.from_pairs(pairs, self.device)

    @contextmanager
    def running(self, execution: Execution = UNLIMITED) -> Iterator[None]:
        """Context for forward passes and for the backward passes that recompute them."""
        with (
            shared_prefix_attention(
                self._configs, NAME_WITH_MASK if self._layout_as_mask else NAME, self.image_stem.towers
            )
            if self.form == "shared_prefix"
            else nullcontext(),
            self._alibi.replaced() if self.form == "shared_prefix" else nullcontext(),
            self._temperature.replaced() if self.form == "shared_prefix" else nullcontext(),
            self.recurrence.running() if self.form == "shared_prefix" else nullcontext(),
            self.fused.running(tile_tokens=execution.tile_tokens) if self.fused else nullcontext(),
        ):
            yield

    def hidden_states(
        self,
        batch: PreferenceBatch,
        reference: LockstepReference | None = None,
    ) -> Tensor:
        """Return last hidden states of the tokens that predict, [scored, hidden_size]; call it within `running()`.

        Args:
            batch: the pairs.
            reference: the reference that is computed in the same pass; the result is a `Lockstep` then.
        """

        def hidden() -> Tensor:
            found = self._predicting(batch, UNLIMITED, None, reference)
            return self._calls.as_head(lambda: found)

        return self._calls.as_root(hidden)

    def _predicting(
        self,
        batch: PreferenceBatch,
        execution: Execution,
        routing: RowRouting | None,
        reference: LockstepReference | None = None,
    ) -> Tensor:
        """`hidden_states` within the call of the whole model."""
        routed = routing is not None
        output: BackboneOutput | None = None
        if execution.graphs is not None and isinstance(batch, SharedPrefixBatch) and not batch.images:
            moved = offloads(len(self.layers), batch.tokens, execution)
            output = execution.graphs.replay(batch, reference, routed, moved)
        if output is None:
            with counted_layers(self.layers, batch.tokens, self.device):
                output = self.backbone(batch, reference, routed)
        if routing is not None:
            routing.take(output.router_logits)
        return output.hidden.flatten(0, 1).index_select(0, batch.predictor_index)

    def backbone(
        self, batch: PreferenceBatch, reference: LockstepReference | None = None, routed: bool = False
    ) -> BackboneOutput:
        """Return the outputs of a pass over a batch; call it within `running()`.

        Args:
            batch: the pairs.
            reference: the reference that is computed in the same pass; the hidden states are a `Lockstep` then.
            routed: whether to return router logits.
        """
        inputs = batch.model_inputs | ({"output_router_logits": True} if routed else {})
        has_images = isinstance(batch, SharedPrefixBatch) and bool(batch.images)
        lockstep: AbstractContextManager[None] = nullcontext()
        embedding: AbstractContextManager[None] = nullcontext()
        if reference is not None:
            own, carry = self.causal_lm.get_input_embeddings(), self.carry and not has_images
            lockstep, embedding = self._lockstep.running(), embedding_of_both(own, reference.adapters, carry)
        with (
            embedding,
            lockstep,
            self.image_stem.running(reference) if has_images else nullcontext(),
        ):
            output = self._decoded(inputs)
        if not routed:
            return BackboneOutput(output.last_hidden_state)
        recorded = output.router_logits if reference is None else of_policy(output.router_logits)
        return BackboneOutput(output.last_hidden_state, recorded)

    def _own_output(self, inputs: dict[str, Any]) -> Any:
        """Run the model with its own head."""
        run = self.causal_lm.forward if self._calls.is_root(self.causal_lm) else self.causal_lm
        found: list[Any] = []

        def logits() -> Tensor:
            found.append(run(**inputs, use_cache=False))
            return found[0].logits  # type: ignore[no-any-return]

        self._calls.as_root(logits)
        return found[0]

    def _decoded(self, inputs: dict[str, Any]) -> Any:
        """Run the decoder; where it takes a layout as a mask, with a mask of ones, from which ALiBi makes its table."""
        if "prefix_layout" not in inputs or not self._layout_as_mask:
            return self.decoder(**inputs, use_cache=False)
        ones = mask_with_layout(inputs["position_ids"], inputs["prefix_layout"])
        with mask_of_layout(inputs["prefix_layout"]):
            return self.decoder(**inputs, attention_mask=ones, use_cache=False)

    def token_scores(
        self,
        batch: PreferenceBatch,
        execution: Execution = UNLIMITED,
        *,
        statistics: bool = True,
        routing: RowRouting | None = None,
    ) -> TokenScores:
        """Return the scores of all scored tokens of `batch`, [scored]; call it within `running()`.

        Args:
            batch: the pairs.
            execution: how the row is computed; its graphs must be of this model.
            statistics: whether anyone reads more of the scores than `logps`.
            routing: takes what the routers of a mixture of experts do; None records nothing.
        """
        with self.autocast(), self._activations(batch, execution):
            if self.form == "own_logits":
                recorded = {"output_router_logits": True} if routing is not None else {}
                output = self._own_output(batch.model_inputs | recorded)
                if routing is not None:
                    routing.take(output.router_logits)
                logits = output.logits.flatten(0, 1).index_select(0, batch.predictor_index)
                return scores_of_logits(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch.targets)

            def scores() -> TokenScores:
                hidden = self._predicting(batch, execution, routing)
                return self._calls.as_head(
                    lambda: self._head.of(hidden, batch.targets, execution.head_chunk, statistics=statistics)
                )

            return self._calls.as_root(scores)

    def scores_in_lockstep(
        self,
        batch: PreferenceBatch,
        reference: LockstepReference,
        execution: Execution = UNLIMITED,
        *,
        routing: RowRouting | None = None,
    ) -> tuple[TokenScores, TokenScores]:
        """Return the scores of all scored tokens, [scored], of the policy and of the reference, from one pass.

        Call it within `running()`. The reference's are without gradient and hold only `logps`.

        Args:
            batch: the pairs, in the form "shared_prefix".
            reference: what the reference is.
            execution: how the row is computed.
            routing: takes the policy's router logits of all layers; None records none.
        """

        def scores() -> tuple[TokenScores, TokenScores]:
            hidden = self._predicting(batch, execution, routing, reference)
            assert isinstance(hidden, Lockstep)
            return self._calls.as_head(
                lambda: self._head.of_policy_and_reference(
                    hidden, batch.targets, execution.head_chunk, reference.adapters
                )
            )

        with self.autocast(), self._activations(batch, execution):
            return self._calls.as_root(scores)

    def _activations(self, batch: PreferenceBatch, execution: Execution) -> AbstractContextManager[None]:
        return activations_of_row(self.layers, batch.tokens, execution, self.image_stem.layers)

    def _padded(self, tokens: int, execution: Execution) -> int:
        """The length of a row of so many tokens with its padding; only passes of training are recorded."""
        tokens += -tokens % self.row_multiple
        if execution.graphs is None or not torch.is_grad_enabled():
            return tokens
        return execution.graphs.padded(tokens)
