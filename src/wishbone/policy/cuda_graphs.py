"""CUDA graphs: passes through a model's layers that are recorded once and replayed, one for each length of row.

A layer launches some forty kernels forward and eighty backward, and each launch costs the host 10 to 80 microseconds.
With a small model or a slow host the GPU waits for them. A CUDA graph holds those kernels with all their arguments and
starts them by one call. It computes what was recorded, at the addresses of that time, so

    ids, positions, tables    are written over those of the recorded row
    embeddings                are too, where the embedding is in host memory
    rows                      are padded to the next recorded length
    the model's state         must be that of the recording; otherwise the row is run, not replayed

Tables say which blocks attention computes, and which segments recurrent layers run through. The latter have room for
more pairs than the recorded row has; a row of still more is run. State is what the layers' Python code looks at in a
pass (`model_state.py`).

The router logits of a mixture of experts, from which its auxiliary loss follows, come out beside the hidden states.

A replay gives the results of the recorded pass, bit by bit (`recording.py` has seen it), and its result holds until
the next replay. A row's backward pass must come before that; any other order raises an error.
"""

from __future__ import annotations

import gc
import logging
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wishbone.data.batch import SharedPrefixBatch
from wishbone.fused.lockstep import Lockstep
from wishbone.ops.prefix_attention.tables import tables_hold
from wishbone.policy.lockstep import LockstepReference
from wishbone.policy.model_state import ModelState
from wishbone.policy.policy import BackboneOutput
from wishbone.policy.recording import Backbone, Recording, RowRecorder

MOST_PADDING = 1.5
"""A row is run as it is where the next length is more than this many times as long, and nothing was measured."""

_Kind = tuple[int, bool, LockstepReference | None, bool]
"""Of a pass: tokens of its row, whether it trains, the reference beside the policy, whether router logits come out."""

logger = logging.getLogger(__name__)


class CudaGraphs:
    """Records and replays passes of a model's backbone over rows.

    Args:
        model: with its adapters; its modules and trained parameters must stay the same objects.
        backbone: `Policy.backbone`: what a pass over a row gives, with its graph where gradients are on.
        documents: of a row that recorded tables of recurrent layers have room for.

    Attributes:
        lengths: tokens of the rows that were recorded or will be, ascending.
        worth: tokens up to which a replay takes no longer than running any row; None where nothing was measured.
        replays: number of passes replayed so far.
    """

    def __init__(self, model: nn.Module, backbone: Backbone, documents: int = 0) -> None:
        self._model, self._state = model, ModelState(model)
        self._recorder = RowRecorder(model, backbone, documents)
        self._recordings: dict[_Kind, tuple[Recording, tuple[Any, ...]]] = {}
        self._open = False
        self._planned: set[int] = set()
        self.lengths: list[int] = []
        self.worth: int | None = None
        self.replays = 0

    @property
    def recorded(self) -> int:
        """Number of lengths that are recorded by now."""
        return len({tokens for tokens, *_ in self._recordings})

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Context in which rows of a new length are recorded."""
        gc.collect()
        self._open = True
        try:
            yield
        finally:
            self._open = False
            self.lengths = sorted({*self._planned, *(tokens for tokens, *_ in self._recordings)})
            gc.collect()

    def plan(self, lengths: Sequence[int], worth: int | None) -> None:
        """Have rows padded to these lengths, and record each when the first row of it is trained on.

        The longest one should have been recorded: the others find their memory in its pool.

        Args:
            lengths: in tokens.
            worth: as the attribute.
        """
        self._planned, self.worth = set(lengths), worth
        self.lengths = sorted(lengths)

    def release(self) -> None:
        """Free the memory of all recordings; every row is run from then on. `lengths` stays, as a record."""
        self._recordings.clear()
        self._planned.clear()
        self._recorder.release()

    def padded(self, tokens: int) -> int:
        """Return the length that a row of so many tokens should be padded to."""
        if self._open or not (self._recordings or self._planned):
            return tokens
        return padded_length(tokens, self.lengths, self.worth)

    def replay(
        self,
        batch: SharedPrefixBatch,
        reference: LockstepReference | None = None,
        routed: bool = False,
        offloaded: bool = False,
    ) -> BackboneOutput | None:
        """Return what a pass over a row gives, or None where it has to be run.

        It holds until the next call. If gradients are on, the backward pass through it reaches the parameters.

        Args:
            batch: the row.
            reference: the reference that is computed in the same pass; the hidden states are a `Lockstep` then.
            routed: whether router logits are returned, [layers, tokens, experts].
            offloaded: whether a row that is recorded keeps the inputs of recomputed layers in host memory.

        Raises:
            RuntimeError: in the context of `recording`, if a pass cannot be recorded.
        """
        kind = batch.tokens, torch.is_grad_enabled(), reference, routed
        if kind not in self._recordings:
            if self._open:
                self._record(kind, batch, offloaded)
            elif batch.tokens in self._planned and self._model.training:
                self._record_in_training(kind, batch, offloaded)
        recording, state = self._recordings.get(kind, (None, ()))
        if recording is None or state != self._state.read():
            return None
        if not tables_hold(recording.batch.layout, batch.layout):
            return None
        self._recorder.take(recording, batch)
        hidden, *routers = _Replay.apply(self, self._recorder, recording, *self._recorder.trained)
        if recording.reference and reference is not None:
            hidden = Lockstep(hidden, recording.reference[0], reference.adapters, *recording.reference[1:])
        return BackboneOutput(hidden, *routers)

    def _record(self, kind: _Kind, batch: SharedPrefixBatch, offloaded: bool) -> None:
        _, _, reference, routed = kind
        recording = self._recorder.record(batch, reference, routed, offloaded)
        self._recordings[kind] = recording, self._state.read()

    def _record_in_training(self, kind: _Kind, batch: SharedPrefixBatch, offloaded: bool) -> None:
        """Record the first row of a planned length; where that fails, all rows are run from then on."""
        start = time.perf_counter()
        torch.cuda.empty_cache()  # the row is run on another stream, which this one's cache cannot serve
        try:
            self._record(kind, batch, offloaded)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.release()
            logger.warning("CUDA graphs are dropped, and rows are run: %s.", str(error).partition("\n")[0])
        else:
            seconds = time.perf_counter() - start
            logger.info("A row of %d tokens was recorded as CUDA graphs in %.1f s.", batch.tokens, seconds)
        torch.cuda.empty_cache()


def padded_length(tokens: int, lengths: Sequence[int], worth: int | None = None) -> int:
    """Return the shortest of these ascending lengths that holds so many tokens; `tokens` if none does or it is far.

    Arguments as attributes of `CudaGraphs`. A length is far if replaying it takes longer than running the row.
    """
    place, most = bisect_left(lengths, tokens), MOST_PADDING * tokens if worth is None else max(worth, tokens)
    return lengths[place] if place < len(lengths) and lengths[place] <= most else tokens


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, passes: CudaGraphs, recorder: RowRecorder, recording: Recording, *trained: Tensor
    ) -> tuple[Tensor, ...]:
        recording.forward.replay()
        passes.replays += 1
        ctx.passes, ctx.recorder, ctx.recording, ctx.replays = passes, recorder, recording, passes.replays
        return tuple(output.detach() for output in recording.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        passes, recorder, recording = ctx.passes, ctx.recorder, ctx.recording
        if passes.replays != ctx.replays:
            raise RuntimeError("another row was replayed since: a row's backward pass must follow its own forward pass")
        for given, gradient in zip(recording.gradients, gradients, strict=True):
            given.copy_(gradient)
        recording.backward.replay()
        passes.replays += 1
        parts = recorder.gradients.clone().split([parameter.numel() for parameter in recorder.trained])
        return None, None, None, *(part.view(p.shape) for part, p in zip(parts, recorder.trained, strict=True))
