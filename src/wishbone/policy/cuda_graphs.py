"""CUDA graphs: passes through a model's layers that are recorded once and replayed, one for each length of row.

A layer launches some forty kernels forward and eighty backward, and each launch costs the host 10 to 80 microseconds.
With a small model or a slow host the GPU waits for them. A CUDA graph holds those kernels with all their arguments and
starts them by one call. It computes what was recorded, at the addresses of that time, so

    ids, positions, tables    are written over those of the recorded row
    rows                      are padded to the next recorded length
    the model's state         must be that of the recording; otherwise the row is run, not replayed

Tables say which blocks attention computes, and which segments recurrent layers run through. The latter have room for
more pairs than the recorded row has; a row of still more is run. State is what the layers' Python code looks at in a
pass (`model_state.py`).

The router logits of a mixture of experts, from which its auxiliary loss follows, come out beside the hidden states.

All recordings share one memory pool, and each writes over the one before. So the result of a replay holds until the
next replay, and a row's backward pass must come before that; any other order raises an error. A replay gives the
results of the recorded pass, bit by bit: each row is run before it is recorded, and a graph whose replay differs is not
used.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wishbone.data.batch import SharedPrefixBatch
from wishbone.fused.lockstep import Lockstep
from wishbone.ops.frozen_linear.scratch import held_scratch
from wishbone.ops.prefix_attention.tables import overwrite_tables, tables_hold
from wishbone.policy.lockstep import LockstepReference
from wishbone.policy.model_state import ModelState
from wishbone.policy.policy import BackboneOutput

UNDO = ("_cuda_endAllocateToPool", "_cuda_releasePool")
"""Functions of `torch._C` that clean up after a failed capture; without them nothing is recorded."""

MOST_PADDING = 1.5
"""A row is run as it is where the next recorded length is more than this many times as long."""


class CudaGraphs:
    """Records and replays passes of a model's backbone over rows.

    Args:
        model: with its adapters; its modules and trained parameters must stay the same objects.
        backbone: `Policy.backbone`: what a pass over a row gives, with its graph where gradients are on.
        documents: of a row that recorded tables of recurrent layers have room for.

    Attributes:
        trained: parameters that hidden states depend on.
        lengths: tokens of the rows that were recorded, ascending.
        gradients: of `trained`, one after the other in one dimension; each replayed backward pass writes them.
        replays: number of passes replayed so far.
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: Callable[[SharedPrefixBatch, LockstepReference | None, bool], BackboneOutput],
        documents: int = 0,
    ) -> None:
        self._backbone, self._model, self._documents = backbone, model, documents
        self._state = ModelState(model)
        self._recordings: dict[tuple[int, bool, LockstepReference | None, bool], _Recording] = {}
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        self._open = False
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.lengths: list[int] = []
        self.gradients: Tensor | None = None
        self.replays = 0
        self._buffers: dict[str, Tensor] = {}
        self._kept: list[Tensor | None] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Context in which rows of a new length are recorded.

        Garbage collection is off meanwhile: what it frees may be in use by another stream, and waiting for that would
        become part of a recording. Random numbers come from a copy of the generator, because a recording that fails
        leaves its generator unusable; the device's own generator is as before afterwards.
        """
        collected = gc.isenabled()
        gc.collect()
        gc.disable()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        random_numbers = generator.graphsafe_get_state()
        generator.graphsafe_set_state(random_numbers.clone_state())
        self._open = True
        try:
            yield
        finally:
            self._open = False
            self.lengths = sorted({tokens for tokens, *_ in self._recordings})
            generator.graphsafe_set_state(random_numbers)
            gc.collect()
            if collected:
                gc.enable()

    def release(self) -> None:
        """Free the memory of all recordings; every row is run from then on. `lengths` stays, as a record.

        cuBLAS keeps a workspace for each stream that multiplied matrices; the one of the recording stream takes 64 MiB
        on an H200. PyTorch frees all workspaces or none. Other streams get theirs again at their next product.
        """
        self._recordings.clear()
        self._kept.clear()
        self._buffers.clear()
        self.gradients = None
        torch._C._cuda_clearCublasWorkspaces()

    def padded(self, tokens: int) -> int:
        """Return the length that a row of so many tokens should be padded to."""
        return tokens if self._open or not self._recordings else padded_length(tokens, self.lengths)

    def replay(
        self, batch: SharedPrefixBatch, reference: LockstepReference | None = None, routed: bool = False
    ) -> BackboneOutput | None:
        """Return what a pass over a row gives, or None where it has to be run.

        It holds until the next call. If gradients are on, the backward pass through it reaches the parameters.

        Args:
            batch: the row.
            reference: the reference that is computed in the same pass; the hidden states are a `Lockstep` then.
            routed: whether router logits are returned, [layers, tokens, experts].

        Raises:
            RuntimeError: while recording, if a pass cannot be recorded.
        """
        key = batch.tokens, torch.is_grad_enabled(), reference, routed
        if self._open and key not in self._recordings:
            roomy = replace(batch, layout=batch.layout.with_room(self._documents))
            with _autocast_without_cache(), self._stand_ins() as leaves:
                self._recordings[key] = self._record(roomy, reference, routed, leaves)
        recording = self._recordings.get(key)
        if recording is None or recording.state != self._state.read():
            return None
        if not tables_hold(recording.batch.layout, batch.layout):
            return None
        recording.take(batch)
        hidden, *routers = _Replay.apply(self, recording, *self.trained)
        if recording.reference and reference is not None:
            hidden = Lockstep(hidden, recording.reference[0], reference.adapters, *recording.reference[1:])
        return BackboneOutput(hidden, *routers)

    def _record(
        self, batch: SharedPrefixBatch, reference: LockstepReference | None, routed: bool, leaves: list[nn.Parameter]
    ) -> _Recording:
        """Run a row, record it, and check that a replay gives the same numbers."""
        trains, tokens = torch.is_grad_enabled(), batch.tokens
        longest = all(tokens > length for length, *_ in self._recordings)
        if longest:  # else the stream and the pool hold what they need, and giving it back takes a sixth of the time
            torch.cuda.empty_cache()  # memory cached for one stream cannot serve another, or a recording
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # loads, compiles and allocates what a capture cannot
            outputs, of_reference = _outputs(self._backbone(batch, reference, routed))
            run = [output.detach() for output in outputs]
            gradients = self._gradients(outputs, leaves, run) if trains else None
        torch.cuda.current_stream().wait_stream(self._stream)
        del outputs  # and their graph
        if longest:
            torch.cuda.empty_cache()
        recording = _Recording(batch, self._state.read(), torch.cuda.CUDAGraph(), self._memory("output", run))
        recording.reference = self._memory("reference", of_reference)
        with self._captured(recording.forward):
            outputs, again = _outputs(self._backbone(batch, reference, routed))
            for out, output in zip(recording.outputs, outputs, strict=True):
                out.copy_(output.detach())
            for out, output in zip(recording.reference, again, strict=True):
                out.copy_(output)
            del again, output
        if gradients is not None:
            recording.gradients = self._memory("gradient", run)
            recording.backward = torch.cuda.CUDAGraph()
            for given, value in zip(recording.gradients, run, strict=True):
                given.copy_(value)
            self.gradients = torch.empty_like(gradients) if self.gradients is None else self.gradients
            with self._captured(recording.backward):
                found = torch.autograd.grad(*_with_graph(outputs, recording.gradients, leaves))
                torch.cat([gradient.flatten() for gradient in found], out=self.gradients)
        del outputs
        self._kept.append(held_scratch(run[0].device))
        recording.forward.replay()
        same = all(map(torch.equal, recording.outputs, run))
        same = same and all(map(torch.equal, recording.reference, of_reference))
        if gradients is not None and recording.backward is not None and self.gradients is not None:
            recording.backward.replay()
            same = same and torch.equal(self.gradients, gradients)
        if not same:
            raise RuntimeError(f"replaying a row of {tokens} tokens gives different results from running it")
        return recording

    def _memory(self, name: str, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return memory for tensors [any, tokens, any], which all recordings no longer than the first share."""
        parts = []
        for number, tensor in enumerate(like):
            kept = self._buffers.get(f"{name} {number}")
            if kept is None or kept.shape[1] < tensor.shape[1]:
                kept = self._buffers[f"{name} {number}"] = torch.empty_like(tensor)
            parts.append(kept[:, : tensor.shape[1]])
        return tuple(parts)

    @contextmanager
    def _captured(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Context whose kernels go into a graph and do not run. `torch.cuda.graph` would free all caches each time."""
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                yield
            finally:
                self._end(graph)

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture. Where that fails, PyTorch leaves its allocator directed to the pool; that is undone here."""
        try:
            graph.capture_end()
        except RuntimeError:
            device, (end, release) = torch.cuda.current_device(), (getattr(torch._C, name) for name in UNDO)
            with suppress(RuntimeError):  # already undone if the capture failed after its end
                end(device, self._pool)
                release(device, self._pool)
            raise

    @contextmanager
    def _stand_ins(self) -> Iterator[list[nn.Parameter]]:
        """Context in which each of `trained` is replaced in its module by another leaf over the same memory.

        The node that accumulates a parameter's gradient belongs to the stream on which it was first used, as long as
        anyone holds a graph with it, even that of a clone. A recording that used it would draw that stream in and fail.
        """
        stand_ins = {id(parameter): nn.Parameter(parameter.detach()) for parameter in self.trained}
        places = [
            (own, name, parameter)
            for own in (module._parameters for module in self._model.modules())
            for name, parameter in own.items()
            if id(parameter) in stand_ins
        ]
        for own, name, parameter in places:
            own[name] = stand_ins[id(parameter)]
        try:
            yield list(stand_ins.values())
        finally:
            for own, name, parameter in places:
                own[name] = parameter

    def _gradients(self, outputs: Sequence[Tensor], leaves: list[nn.Parameter], direction: Sequence[Tensor]) -> Tensor:
        """Return gradients by the leaves that outputs depend on, in one tensor; both lists keep only those."""
        every = torch.autograd.grad(*_with_graph(outputs, direction, [*leaves, *self.trained]), allow_unused=True)
        found, own = every[: len(leaves)], every[len(leaves) :]
        if any(gradient is not None for gradient in own):
            raise NotImplementedError("a trained parameter is used outside its module")
        for parameters in (self.trained, leaves):
            parameters[:] = [p for p, gradient in zip(parameters, found, strict=True) if gradient is not None]
        if len({parameter.dtype for parameter in self.trained}) != 1:
            raise NotImplementedError("parameters of several dtypes are trained")
        return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def _outputs(output: BackboneOutput) -> tuple[list[Tensor], list[Tensor]]:
    """Return the policy's outputs of a pass, and the reference's hidden states and the carried difference, if any.

    Router logits of all layers are one tensor, [layers, tokens, experts].
    """
    hidden, routers = output
    own = [hidden.policy if isinstance(hidden, Lockstep) else hidden]
    if len(routers):
        own.append(routers if isinstance(routers, Tensor) else torch.stack(tuple(routers)))
    if not isinstance(hidden, Lockstep):
        return own, []
    return own, [one for one in (hidden.reference, hidden.difference) if one is not None]


def _with_graph(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[list[Tensor], Sequence[Tensor], list[Tensor]]:
    """Return arguments of `torch.autograd.grad`: the outputs that depend on anything trained; the first always does."""
    used = [i for i, output in enumerate(outputs) if i == 0 or output.requires_grad]
    return [outputs[i] for i in used], inputs, [gradients[i] for i in used]


def _autocast_without_cache() -> torch.autocast:
    """Autocast as it is now, without its cache: a recording must not read a cast weight that was made before it."""
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False)


def padded_length(tokens: int, lengths: Sequence[int]) -> int:
    """Return the shortest of these ascending lengths that holds so many tokens; `tokens` if none does or it is far."""
    place = bisect_left(lengths, tokens)
    return lengths[place] if place < len(lengths) and lengths[place] <= MOST_PADDING * tokens else tokens


@dataclass
class _Recording:
    """Graphs of one row, and the tensors that they read and write."""

    batch: SharedPrefixBatch
    state: tuple[Any, ...]
    forward: torch.cuda.CUDAGraph
    outputs: tuple[Tensor, ...]
    reference: tuple[Tensor, ...] = ()
    backward: torch.cuda.CUDAGraph | None = None
    gradients: tuple[Tensor, ...] = ()

    def take(self, batch: SharedPrefixBatch) -> None:
        """Copy another row of the same length into the graphs' input tensors."""
        self.batch.input_ids.copy_(batch.input_ids, non_blocking=True)
        self.batch.position_ids.copy_(batch.position_ids, non_blocking=True)
        overwrite_tables(self.batch.layout, batch.layout)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: CudaGraphs, recording: _Recording, *trained: Tensor) -> tuple[Tensor, ...]:
        recording.forward.replay()
        passes.replays += 1
        ctx.passes, ctx.recording, ctx.replays = passes, recording, passes.replays
        return tuple(output.detach() for output in recording.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        passes, recording = ctx.passes, ctx.recording
        if passes.replays != ctx.replays:
            raise RuntimeError("another row was replayed since: a row's backward pass must follow its own forward pass")
        for given, gradient in zip(recording.gradients, gradients, strict=True):
            given.copy_(gradient)
        recording.backward.replay()
        passes.replays += 1
        parts = passes.gradients.clone().split([parameter.numel() for parameter in passes.trained])
        return None, None, *(part.view(p.shape) for part, p in zip(parts, passes.trained, strict=True))
