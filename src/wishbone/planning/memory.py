r"""Memory of a training step by item, estimated from the model's shape before anything is loaded.

Symbols: H hidden size, I inner size of an MLP, Q and K sizes of all query and of all key heads, V vocabulary, L layers,
r rank; T tokens of a row, S of them scored; n of L layers kept; b bytes of an element in the arithmetic.

**At rest.** A parameter of a linear layer takes b bytes; in 8 bits (FP8, int8) 1, and 4 for each row's scale; in NF4
(blocks of 64 with an 8-bit scale, 256 of them with a 32-bit one) 1/2 + 1/64 + 4/(64 256). All experts of a mixture rest
likewise. Embedding, head, norms, biases and routers take b. An adapter has r (inputs +
outputs) parameters for each linear layer, as many gradients, and the optimizer a multiple; where experts have adapters,
each has its own.

**Kept for the backward pass,** bytes a token and layer. On a GPU with adapters (layers are fused while a step runs):

    layer = b (4 H + 2 Q + 2 K + 2 I + sum of ranks) + 4 heads + 8

These are the inputs and outputs of both norms, queries and keys after rotation, values, attention's output, gate and
up, the adapters' low-rank products, attention's normalizer, and 1 / rms. Layers as transformers and PEFT write them (on
a CPU, and where all weights are trained) also keep two more intermediates of the MLP, inputs of norms in float32, and
the normed rows where norms are trained; on a CPU attention's output once more, and the keys of branches. A recomputed
layer keeps its input, b H. With inputs in host memory the device holds three of them at a time: one in use, one fetched
ahead, one on its way. In a mixture, 2 I counts the experts that a token goes to, and their others rest. A recurrent
layer has no queries and keys: it keeps the outputs of its projections twice, before and after its convolution.

    activations = T (n layer + (L - n) b H)

**What comes and goes.** At the end of the forward pass the head holds hidden states and the unit gradient of scored
tokens, the logits of a chunk of them, and the outputs of the last layer and the last norm for all tokens (three times b
H a token where inputs stay on the device). In the backward pass an MLP holds the gradients of its input, its output and
its inner product, and with 8-bit weights the last once more in 8 bits; experts hold one row of H for each that a token
goes to. The kernels of a scan hold states and gradients in float32 (`mixers.py`), when gate and up of the MLP behind it
are gone. Where no layer is kept, the layer that is being recomputed holds what a kept one does. Where memory is short
(inputs in host memory), MLPs run over tiles of about 1,024 tokens, of which one holds 2 H + 4 I. The optimizer may hold
a copy of what is trained while it steps. The peak is the largest of the three:

    head      = b H (3 T + 2 S) + 4 chunk V
    backward  = T b (2 H + I), and T (layer - b H) more where n = 0
    peak      = at rest + workspace + max( activations + head, activations + backward, optimizer's copy )

The reference runs over the same row and keeps nothing, so its pass is never the peak. Workspaces are those of the
matrix library and, for 8 bits and NF4, the largest weight transposed or dequantized, which is a stack of experts if
there are any; on a CPU memory fragmentation. `runtime` is what a process takes beside tensors: on a GPU the driver's
context, which allocators do not count; on a CPU Python and its libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

from wishbone.engine.execution import SMALL_TILE
from wishbone.planning.mixers import Linear
from wishbone.planning.model_shape import LINEAR_EXPERTS, ModelShape

Weights = Literal["f32", "f16", "bf16", "fp8", "int8", "nf4"]
EIGHT_BITS: tuple[Weights, ...] = ("fp8", "int8")
MIB, GIB = 2**20, 2**30

NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
ADAPTER_BYTES = 4
STATE_ELEMENTS = {
    "adamw_torch": 2.0,
    "adamw_torch_fused": 2.0,
    "paged_adamw_32bit": 2.0,
    "adamw_8bit": 0.5,
    "paged_adamw_8bit": 0.5,
    "lion_32bit": 1.0,
    "lion_8bit": 0.25,
    "adagrad": 1.0,
    "rmsprop": 1.0,
    "adafactor": 0.0,
    "sgd": 0.0,
}
"""Elements of state for each trained parameter, in its own size; 8 bits count as a quarter of a float32 element."""

COPYING = frozenset({"adamw_torch", "adagrad", "rmsprop"})
"""Optimizers that hold one more element for each trained parameter while they step."""

LIBRARY_WORKSPACE = 64 * MIB
"""cuBLAS: 32 MiB for each of the two threads that compute products, forward and backward."""
CONTEXT = 512 * MIB
"""A CUDA context with the kernels of PyTorch, outside of what its allocator counts."""
PROCESS = 1200 * MIB
"""A Python process with PyTorch, transformers and datasets, and memory that loading left in its heap."""
HOLES = 0.8
"""Memory fragmentation on a CPU, as a share of the tensors that come and go. `wishbone train` keeps freed memory in
pages of 2 MiB, which makes steps faster; rows of different lengths leave holes in it."""


@dataclass(frozen=True)
class MemoryPlan:
    """What memory depends on in a run.

    Attributes:
        weights: form of the frozen weights.
        row_tokens: tokens of the longest row.
        method, rank, targets: what is trained; targets are "all-linear" (with experts in `LINEAR_EXPERTS`), or names of
            linear layers and of experts' stacked weights.
        scored_tokens: tokens of that row whose log-probability is computed; None counts all.
        kept_layers: layers whose activations are kept; None keeps all.
        offload: inputs of recomputed layers wait in host memory.
        pieces: MLPs are computed in small pieces.
        head_chunk: most bytes of logits that are held at a time; None where only the device limits them.
        optimizer: a name of `STATE_ELEMENTS`.
        device: where.
        reference: "none" of its own (the adapter off), "separate" (a second model of the same shape), or "stored".
        device_memory: bytes of the device; decides how many logits are held at a time.
        adapter_bytes: of a trained parameter of an adapter.
    """

    weights: Weights
    row_tokens: float
    method: Literal["lora", "full"] = "lora"
    rank: int = 16
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    scored_tokens: float | None = None
    kept_layers: int | None = None
    offload: bool = False
    pieces: bool = False
    head_chunk: int | None = None
    optimizer: str = "adamw_torch"
    device: Literal["cuda", "cpu"] = "cuda"
    reference: Literal["none", "separate", "stored"] = "none"
    device_memory: float = 24.0 * GIB
    adapter_bytes: int = ADAPTER_BYTES

    @property
    def element_bytes(self) -> int:
        """Bytes of an element in the arithmetic."""
        return 4 if self.weights == "f32" or (self.device == "cpu" and self.weights in (*EIGHT_BITS, "nf4")) else 2

    @property
    def fused(self) -> bool:
        """Whether layers are fused while a step runs."""
        return self.device == "cuda" and self.method == "lora"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by item, in a fixed order.

    Attributes:
        items: "weights", "embeddings and head", "adapter", "gradients", "optimizer", "activations", "head chunk",
            "reference", "workspace", "runtime".
    """

    items: dict[str, float]

    @property
    def total(self) -> float:
        """What the device must have."""
        return reduce(add, self.items.values())  # sum() of Python 3.12 rounds otherwise

    @property
    def allocated(self) -> float:
        """The peak that PyTorch's allocator counts on a GPU: all but the runtime."""
        return self.total - self.items["runtime"]


def estimate_memory(shape: ModelShape, plan: MemoryPlan) -> MemoryEstimate:
    """Return the peak of a training step by item, by this module's equations."""
    b, tokens = plan.element_bytes, plan.row_tokens
    scored = tokens if plan.scored_tokens is None else plan.scored_tokens
    frozen = linear_bytes(shape, plan) + expert_bytes(shape, plan) + b * shape.vector_parameters
    embeddings = b * shape.embedding_parameters
    trained = trained_parameters(shape, plan)
    trained_bytes = plan.adapter_bytes if plan.method == "lora" else b
    activations = tokens * kept_bytes(shape, plan)
    head = b * 2 * scored * shape.hidden + logits_bytes(shape, plan, scored)
    if not plan.offload:
        head += b * 3 * tokens * shape.hidden
    if plan.method == "full":
        head += 4 * shape.vocabulary * shape.hidden
    recomputed, passing = backward_bytes(shape, plan)
    copy = trained * trained_bytes if plan.optimizer in COPYING else 0.0
    over_head = max(recomputed + passing - head, 0.0)
    recomputed = min(recomputed, over_head)
    beyond = max(over_head - recomputed, copy - activations - recomputed - head)
    holes = HOLES * (activations + recomputed + head + beyond) if plan.device == "cpu" else 0.0
    return MemoryEstimate(
        {
            "weights": frozen,
            "embeddings and head": embeddings,
            "adapter": trained * trained_bytes if plan.method == "lora" else 0.0,
            "gradients": trained * trained_bytes,
            "optimizer": trained * trained_bytes * STATE_ELEMENTS[plan.optimizer],
            "activations": activations + recomputed,
            "head chunk": head,
            "reference": frozen + embeddings if plan.reference == "separate" else 0.0,
            "workspace": workspace_bytes(shape, plan) + beyond + holes,
            "runtime": CONTEXT if plan.device == "cuda" else PROCESS,
        }
    )


def frozen_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
    """Return the bytes of a whole model in the plan's form of weights."""
    rest = shape.vector_parameters + shape.embedding_parameters
    return linear_bytes(shape, plan) + expert_bytes(shape, plan) + plan.element_bytes * rest


def linear_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
    """Return the bytes of the linear layers' weights."""
    if plan.weights == "nf4":
        return NF4_BYTES * shape.linear_parameters
    if plan.weights in EIGHT_BITS:
        return shape.linear_parameters + 4 * sum(linear.count * linear.outputs for linear in shape.linears)
    return plan.element_bytes * shape.linear_parameters


def expert_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
    """Return the bytes of all experts and their routers."""
    if plan.weights not in ("nf4", *EIGHT_BITS):
        return plan.element_bytes * shape.expert_parameters
    count = shape.expert_layers * shape.experts
    stacks = shape.matrices * count * shape.hidden * shape.expert_inner
    router = plan.element_bytes * count * shape.hidden
    if plan.weights == "nf4":
        return NF4_BYTES * stacks + router
    return stacks + 4 * count * ((shape.matrices - 1) * shape.expert_inner + shape.hidden) + router


def adapted(shape: ModelShape, plan: MemoryPlan) -> list[Linear]:
    """Return the linear layers that have an adapter."""
    return [linear for linear in shape.linears if plan.targets == "all-linear" or linear.name in plan.targets]


def trained_parameters(shape: ModelShape, plan: MemoryPlan) -> int:
    """Return how many parameters are trained."""
    if plan.method == "full":
        return shape.parameters
    linears = sum(linear.count * (linear.inputs + linear.outputs) for linear in adapted(shape, plan))
    return plan.rank * (linears + shape.expert_layers * shape.experts * adapted_of_expert(shape, plan))


def adapted_of_expert(shape: ModelShape, plan: MemoryPlan) -> int:
    """Return inputs + outputs of the matrices of one expert that have an adapter.

    Under "all-linear" gate and up, which lie in one matrix, have an adapter of the double rank.
    """
    whole = plan.targets == "all-linear" and shape.model_type in LINEAR_EXPERTS
    up = (2 if whole else "gate_up_proj" in plan.targets) * (shape.hidden + 2 * shape.expert_inner)
    return up + (whole or "down_proj" in plan.targets) * (shape.expert_inner + shape.hidden)


def layer_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
    """Return the bytes a token that one kept layer keeps for the backward pass; of unlike layers the mean."""
    b = plan.element_bytes
    if plan.fused:
        norms = shape.norms * shape.hidden * 2 * b
    else:
        norms = shape.norms * shape.hidden * (4 + b + (b if plan.method == "full" else 0))
    attention: float = 2 * shape.query + 2 * shape.key
    if plan.device == "cpu":
        attention += shape.query + 4 / 3 * shape.key
    if shape.head_norms:
        attention += shape.query + shape.key
    if shape.recurrent:
        attention = (shape.attending * attention + shape.recurrent * shape.mixed) / shape.layers
    mlp: float = (2 if plan.fused else 4) * inner_elements(shape)
    if shape.mlp_alone:
        mlp *= shape.mlp_alone / shape.layers
    low = (
        plan.rank * sum(linear.count for linear in adapted(shape, plan)) / shape.layers if plan.method == "lora" else 0
    )
    return norms + b * (attention + mlp + low) + 4 * (shape.heads + shape.norms)


def kept_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
    """Return the bytes a token of all that a row keeps from its forward to its backward pass."""
    kept = shape.layers if plan.kept_layers is None else plan.kept_layers
    inputs = min(shape.layers - kept, 3) if plan.offload else shape.layers - kept
    return kept * layer_bytes(shape, plan) + inputs * plan.element_bytes * shape.hidden


def backward_bytes(shape: ModelShape, plan: MemoryPlan) -> tuple[float, float]:
    """Return the bytes of the layer that is recomputed where none is kept, and of what comes and goes in a layer."""
    b, tokens, inner = plan.element_bytes, plan.row_tokens, inner_elements(shape)
    passing = (1 if plan.fused else 3) * b * inner + (inner if plan.weights in EIGHT_BITS else 0)
    passing += b * shape.experts_used * shape.hidden
    layer = layer_bytes(shape, plan) - b * shape.hidden if plan.kept_layers == 0 else 0.0
    tiles = int(tokens / SMALL_TILE + 1 / 2)
    if not (plan.pieces and plan.fused and shape.inner) or tiles < 2:
        gone = 0 if shape.mlp_alone else tokens * 2 * b * inner
        scan = shape.scan.bytes_of(tokens) - gone if plan.fused else 0.0
        return tokens * layer, tokens * 2 * b * shape.hidden + max(tokens * passing, scan)
    layer -= 2 * b * inner
    tile = 2 * b * shape.hidden + 3 * b * inner + passing
    return tokens * layer, tokens * 2 * b * shape.hidden + tokens / tiles * tile


def inner_elements(shape: ModelShape) -> int:
    """Return the elements of a token within an MLP, or within all experts that it goes to."""
    return shape.inner or shape.experts_used * shape.expert_inner + shape.shared_inner


def logits_bytes(shape: ModelShape, plan: MemoryPlan, scored: float) -> float:
    """Return the bytes of the logits that are held at a time."""
    width = 4 * shape.vocabulary
    if plan.device == "cpu":
        return 2 * min(max(16, 64 * MIB // width), scored) * width
    width = 4 * 128 * -(-shape.vocabulary // 128)
    room = min(max(plan.device_memory // 128, 64 * MIB), GIB)
    room = room if plan.head_chunk is None else min(room, plan.head_chunk)
    return min(max(128, room // width // 128 * 128), scored) * width


def workspace_bytes(shape: ModelShape, plan: MemoryPlan) -> float:
    """Return the bytes of scratch memory."""
    largest = max(linear.inputs * linear.outputs for linear in shape.linears)
    largest = max(largest, 2 * shape.experts * shape.expert_inner * shape.hidden)
    scratch = plan.element_bytes * largest if plan.weights in (*EIGHT_BITS, "nf4") else 0
    return scratch + (LIBRARY_WORKSPACE if plan.device == "cuda" else 0)
