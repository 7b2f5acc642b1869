"""Records the pass over one row as CUDA graphs, and checks that a replay gives the same numbers (`cuda_graphs.py`).

All recordings share one memory pool and their memory for outputs and gradients, so each writes over the one before. A
row is run once before it is recorded: that loads, compiles and allocates what a capture cannot, and gives the numbers
that the replay is compared with.

Layers may be recomputed: that is part of the graph of the backward pass. Their inputs may wait in host memory: the
copies are nodes of both graphs, to and from buffers that stay (`offload.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wishbone.data.batch import SharedPrefixBatch
from wishbone.fused.lockstep import Lockstep
from wishbone.model.host_embedding import HostEmbedding
from wishbone.ops.frozen_linear.scratch import held_scratch
from wishbone.ops.prefix_attention.tables import overwrite_tables
from wishbone.policy.activations import checkpointed_layers, drawing_nothing
from wishbone.policy.capture import Capture, autocast_without_cache, stand_ins, undisturbed
from wishbone.policy.lockstep import LockstepReference
from wishbone.policy.offload import HostBuffers, OffloadedPass, offloaded_activations
from wishbone.policy.policy import BackboneOutput

Backbone = Callable[[SharedPrefixBatch, LockstepReference | None, bool], BackboneOutput]
"""`Policy.backbone`: what a pass over a row gives, with its graph where gradients are on."""


@dataclass
class Recording:
    """Graphs of one row, and the tensors that they read and write.

    Attributes:
        batch: the row, over which others are written.
        forward: the graph of the forward pass.
        outputs: the policy's, [1, tokens, hidden_size] and perhaps router logits, [layers, tokens, experts].
        embedded: embeddings of the row where they are in host memory, [1, tokens, hidden_size].
        reference: the reference's hidden states and the carried difference, each [1, tokens, hidden_size].
        backward: the graph of the backward pass.
        gradients: of `outputs`.
    """

    batch: SharedPrefixBatch
    forward: torch.cuda.CUDAGraph
    outputs: tuple[Tensor, ...]
    embedded: tuple[Tensor, ...]
    reference: tuple[Tensor, ...] = ()
    backward: torch.cuda.CUDAGraph | None = None
    gradients: tuple[Tensor, ...] = ()


class RowRecorder:
    """Records passes of a model's backbone over rows.

    Args:
        model: with its adapters; its modules and trained parameters must stay the same objects.
        backbone: what is recorded.
        documents: of a row that recorded tables of recurrent layers have room for.

    Attributes:
        trained: parameters that hidden states depend on.
        gradients: of `trained`, one after the other in one dimension; each replayed backward pass writes them.
    """

    def __init__(self, model: nn.Module, backbone: Backbone, documents: int) -> None:
        self._model, self._backbone, self._documents = model, backbone, documents
        self._capture, self._layers = Capture(), checkpointed_layers(model)
        self._embedding = next((module for module in model.modules() if isinstance(module, HostEmbedding)), None)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.gradients: Tensor | None = None
        self._buffers: dict[str, Tensor] = {}
        self._kept: list[Tensor | None] = []
        self._host = HostBuffers()
        self._longest = 0

    def release(self) -> None:
        """Free the memory that recordings share.

        cuBLAS keeps a workspace for each stream that multiplied matrices; the one of the recording stream takes 64 MiB
        on an H200. PyTorch frees all workspaces or none. Other streams get theirs again at their next product.
        """
        self._kept.clear()
        self._buffers.clear()
        self._host = HostBuffers()
        self.gradients = None
        torch._C._cuda_clearCublasWorkspaces()

    def take(self, recording: Recording, batch: SharedPrefixBatch) -> None:
        """Copy another row of the same length into the tensors that graphs read."""
        recording.batch.input_ids.copy_(batch.input_ids, non_blocking=True)
        recording.batch.position_ids.copy_(batch.position_ids, non_blocking=True)
        overwrite_tables(recording.batch.layout, batch.layout)
        if self._embedding is not None:
            recording.embedded[0].copy_(self._embedding.lines(batch.input_ids), non_blocking=True)

    def record(
        self, batch: SharedPrefixBatch, reference: LockstepReference | None, routed: bool, offloaded: bool
    ) -> Recording:
        """Run a row and record it.

        Args:
            batch: the row; its tensors become those that the graphs read.
            reference: the reference that is computed in the same pass.
            routed: whether router logits come out.
            offloaded: whether inputs of recomputed layers wait in host memory.

        Raises:
            RuntimeError: it cannot be recorded, or a replay gives other numbers.
        """
        batch = replace(batch, layout=batch.layout.with_room(self._documents))
        embedded = self._embedded(batch)

        def run() -> tuple[list[Tensor], list[Tensor], OffloadedPass | None]:
            with self._given(embedded), self._moved(offloaded) as moved:
                return *_outputs(self._backbone(batch, reference, routed)), moved

        with (
            undisturbed(),
            autocast_without_cache(),
            drawing_nothing(self._layers),
            stand_ins(self._model, self.trained) as leaves,
        ):
            return self._recorded(batch, embedded, run, leaves)

    def _recorded(
        self,
        batch: SharedPrefixBatch,
        embedded: tuple[Tensor, ...],
        run: Callable[[], tuple[list[Tensor], list[Tensor], OffloadedPass | None]],
        leaves: list[nn.Parameter],
    ) -> Recording:
        trains, stream = torch.is_grad_enabled(), self._capture.stream
        longest = batch.tokens > self._longest
        self._longest = max(self._longest, batch.tokens)
        if longest:  # else the stream and the pool hold what they need, and giving it back takes a sixth of the time
            torch.cuda.empty_cache()  # memory cached for one stream cannot serve another, or a recording
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs, of_reference, _ = run()
            wanted = [output.detach() for output in outputs]
            gradients = self._gradients(outputs, wanted, leaves).clone() if trains else None
        torch.cuda.current_stream().wait_stream(stream)
        del outputs  # and their graph
        if longest:
            torch.cuda.empty_cache()
        recording = Recording(batch, torch.cuda.CUDAGraph(), self._memory("output", wanted), embedded)
        recording.reference = self._memory("reference", of_reference)
        with self._capture.captured(recording.forward):
            outputs, again, moved = run()
            for out, output in zip(recording.outputs, outputs, strict=True):
                out.copy_(output.detach())
            for out, output in zip(recording.reference, again, strict=True):
                out.copy_(output)
            del again, output
        if gradients is not None:
            recording.gradients = self._memory("gradient", wanted)
            recording.backward = torch.cuda.CUDAGraph()
            for given, value in zip(recording.gradients, wanted, strict=True):
                given.copy_(value)
            with self._capture.captured(recording.backward):
                self._gradients(outputs, recording.gradients, leaves)
                if moved is not None:
                    moved.settle()
        del outputs, moved
        self._kept.append(held_scratch(wanted[0].device))
        recording.forward.replay()
        same = all(map(torch.equal, recording.outputs, wanted))
        same = same and all(map(torch.equal, recording.reference, of_reference))
        if gradients is not None and recording.backward is not None and self.gradients is not None:
            recording.backward.replay()
            same = same and torch.equal(self.gradients, gradients)
        if not same:
            raise RuntimeError(f"replaying a row of {batch.tokens} tokens gives different results from running it")
        return recording

    def _embedded(self, batch: SharedPrefixBatch) -> tuple[Tensor, ...]:
        """Return memory with the embeddings of a row where a graph cannot look them up."""
        if self._embedding is None:
            return ()
        lines = self._embedding.lines(batch.input_ids)
        (memory,) = self._memory("embedding", [lines])
        return (memory.copy_(lines),)

    def _given(self, embedded: Sequence[Tensor]) -> AbstractContextManager[None]:
        return nullcontext() if self._embedding is None else self._embedding.given(*embedded)

    def _moved(self, offloaded: bool) -> AbstractContextManager[OffloadedPass | None]:
        return offloaded_activations(self._host.from_first()) if offloaded else nullcontext()

    def _memory(self, name: str, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return memory for tensors [any, tokens, any], which all recordings no longer than the first share."""
        parts = []
        for number, tensor in enumerate(like):
            kept = self._buffers.get(f"{name} {number}")
            if kept is None or kept.shape[1] < tensor.shape[1]:
                kept = self._buffers[f"{name} {number}"] = torch.empty_like(tensor)
            parts.append(kept[:, : tensor.shape[1]])
        return tuple(parts)

    def _gradients(self, outputs: Sequence[Tensor], direction: Sequence[Tensor], leaves: list[nn.Parameter]) -> Tensor:
        """Write gradients by the leaves into `gradients`, each as soon as it is known, and return that."""
        used = [i for i, output in enumerate(outputs) if i == 0 or output.requires_grad]
        outputs, direction = [outputs[i] for i in used], [direction[i] for i in used]
        if self.gradients is None:
            self.gradients = self._first_gradients(outputs, direction, leaves)
            return self.gradients
        parts = self.gradients.zero_().split([leaf.numel() for leaf in leaves])
        for leaf, part in zip(leaves, parts, strict=True):
            leaf.grad = part.view(leaf.shape)
        torch.autograd.backward(outputs, direction, inputs=leaves)
        for leaf in leaves:
            leaf.grad = None
        return self.gradients

    def _first_gradients(
        self, outputs: Sequence[Tensor], direction: Sequence[Tensor], leaves: list[nn.Parameter]
    ) -> Tensor:
        """Return gradients by the leaves that outputs depend on; `leaves` and `trained` keep only those."""
        every = torch.autograd.grad(outputs, [*leaves, *self.trained], direction, allow_unused=True)
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
