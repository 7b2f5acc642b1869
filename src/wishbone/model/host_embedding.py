"""The input embedding in host memory: a row of tokens reads only a few thousand lines of this table.

Llama-3's table of 128,256 x 4,096 elements takes 1 GiB of GPU memory in 16 bits and is only ever read. In host memory,
the lines of the tokens are picked there and sent to the GPU: 32 MiB for 4,096 tokens. Results are the same.

A pass that is recorded as CUDA graphs cannot wait for the host. It reads `given` lines, picked before each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wishbone.errors import RequestError


class HostEmbedding(nn.Embedding):
    """An embedding whose frozen table stays in host memory wherever the rest of the model goes.

    Args:
        table: [vocabulary, size].
        padding_idx: as of `nn.Embedding`.
    """

    def __init__(self, table: Tensor, padding_idx: int | None = None) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = table.shape
        self.padding_idx = padding_idx
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        self.weight = nn.Parameter(table.detach().cpu(), requires_grad=False)
        self._given: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return the lines of `input`, [..., size], on its device, or those that are `given`."""
        return self.lines(input) if self._given is None else self._given.detach()

    def lines(self, input: Tensor) -> Tensor:
        """Return the lines of `input`, [..., size], on its device."""
        lines = nn.functional.embedding(input.cpu(), self.weight)
        return lines.pin_memory().to(input.device, non_blocking=True) if input.is_cuda else lines

    @contextmanager
    def given(self, lines: Tensor) -> Iterator[None]:
        """Context in which `forward` returns these lines, [..., size], which are those of its input."""
        self._given = lines
        try:
            yield
        finally:
            self._given = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HostEmbedding:
        """Keep the table where it is and as it is when the rest of the model is moved or cast."""
        return self


def keep_embedding_on_host(model: PreTrainedModel) -> None:
    """Move the input embedding of a model to host memory, for good.

    Raises:
        RequestError: the output head is the same table, which every token is multiplied with.
    """
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    if head is not None and head.weight is embedding.weight:
        raise RequestError(
            "offload_embedding needs an input embedding of its own, and this model's is also its output head; "
            "leave it out"
        )
    if type(embedding) is not nn.Embedding:
        raise RequestError(
            f"offload_embedding takes an nn.Embedding, and this model has {type(embedding).__name__}; leave it out"
        )
    model.set_input_embeddings(HostEmbedding(embedding.weight, embedding.padding_idx))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compute_device(model: nn.Module) -> torch.device:
    """Return the device that a model computes on: that of its first parameter outside a `HostEmbedding`."""
    for module in model.modules():
        if not isinstance(module, HostEmbedding):
            for parameter in module.parameters(recurse=False):
                return parameter.device
    return torch.device("cpu")
