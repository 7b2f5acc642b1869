"""How a step is computed: row length, kept activations, chunk sizes, CUDA graphs; and what to give up first.

Every field of `Execution` trades memory for time. Loss and gradients are the same for all of them. Profiling
(`profiling.py`) finds the one a run begins with, a step takes it as an argument, a step that runs out of memory asks it
for the next smaller one (`oom_retry.py`), and the planner estimates memory and time of the same object
(`planning/room.py`). So there is one answer to "what is given up when memory runs out": `Execution.smaller`.

A row of T tokens in a model of L layers takes

    fixed + T (base + n layer) bytes,    n = layers whose activations are kept, 0 <= n <= L,

and `Room` holds what a row may take beyond `fixed`. It chooses n for each row: as many as fit, so one long pair in a
data set does not slow down all others.

This module loads no torch: the planner answers before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

Treatment = Literal["keep", "recompute", "offload"]
"""What happens to activations between a layer's forward and backward pass, where the user decides it."""

SMALL_HEAD_CHUNK = 128 * 2**20
"""Bytes of logits held at a time where memory is short."""

RECOMPUTED_HEAD_CHUNK = 256 * 2**20
"""The same where the run asks for less memory: the usual GiB may be more than a recomputed layer takes."""

SMALL_TILE = 1024
"""Tokens, about, whose MLP intermediates are held at a time where memory is short."""

SHRINK = 0.9
"""Share of a row's room that is left after one step down the ladder."""


@dataclass(frozen=True)
class Room:
    """Memory for the activations of a row, in bytes.

    Attributes:
        total: what a row may take beyond what a row of no tokens takes.
        base: bytes a token with every layer recomputed.
        layer: further bytes a token for each layer that is kept.
    """

    total: float
    base: float
    layer: float

    def holds(self, tokens: int) -> bool:
        """Return whether a row fits with every layer recomputed."""
        return self.total - tokens * self.base >= 0

    def kept(self, tokens: float, layers: int) -> int:
        """Return how many of `layers` a row can keep the activations of."""
        if math.isinf(self.total):
            return layers
        fitting = (self.total - tokens * self.base) // max(tokens * self.layer, 1e-9)
        return int(max(0, min(layers, fitting)))

    def keeps_all(self, tokens: int, layers: int) -> bool:
        """Return whether a row fits with the activations of all `layers` kept."""
        return self.holds(tokens) and self.kept(tokens, layers) >= layers

    def longest(self) -> int:
        """Return the tokens of the longest row that fits with every layer recomputed, in whole blocks of 128."""
        return int(self.total // max(self.base, 1e-9)) // 128 * 128

    def longest_kept(self, layers: int) -> int:
        """Return the tokens of the longest row that fits with all `layers` kept, in whole blocks of 128."""
        return int(self.total // max(self.base + layers * self.layer, 1e-9)) // 128 * 128

    def smaller(self, tokens: int, layers: int) -> Room:
        """Return a tenth less room, or as much less as it takes for a row of `tokens` to keep one layer fewer."""
        kept = self.kept(tokens, layers)
        room = replace(self, total=SHRINK * self.total)
        if room.kept(tokens, layers) < kept:
            return room
        return replace(self, total=tokens * (self.base + (kept - 0.5) * self.layer))


EVERYTHING = Room(total=math.inf, base=0.0, layer=0.0)
NOTHING = Room(total=0.0, base=0.0, layer=1.0)


class Graphs(Protocol):
    """Recorded passes of rows of certain lengths (`policy/cuda_graphs.py`)."""

    lengths: list[int]
    """Tokens of rows that are recorded or will be, ascending."""
    worth: int | None
    """Tokens up to which a replay takes no longer than running any row; None where nothing was measured."""

    def padded(self, tokens: int) -> int:
        """Return the length that a row of so many tokens should be padded to."""
        ...

    def replay(self, batch: Any, reference: Any = None, routed: bool = False, offloaded: bool = False) -> Any:
        """Return what a pass over a row gives by replaying its graph, or None where the row has to be run."""
        ...

    def release(self) -> None:
        """Free the memory of all recordings; every row is run from then on."""
        ...


@dataclass(frozen=True)
class PaddedTo:
    """What rows are padded to, so that they are replayed; attributes as those of `Graphs`."""

    lengths: tuple[int, ...]
    worth: int | None


@dataclass(frozen=True)
class Execution:
    """How a step is computed.

    Attributes:
        token_budget: most tokens in a row; a longer pair gets a row of its own.
        room: memory for a row's activations, which decides how many layers it keeps. `EVERYTHING` keeps all,
            `NOTHING` recomputes all, None leaves the layers as the model's owner set them.
        offload: whether the inputs of recomputed layers wait in host memory: "never", "always", or "as needed", for
            rows that do not fit into the room otherwise.
        head_chunk: most bytes of logits held at a time; None is the op's own choice, which is never exceeded.
        tile_tokens: tokens, about, whose MLP intermediates are held at a time; None holds those of a whole row.
        graphs: passes that are replayed instead of run; None runs every row.
    """

    token_budget: int
    room: Room | None = None
    offload: Literal["never", "as needed", "always"] = "never"
    head_chunk: int | None = None
    tile_tokens: int | None = None
    graphs: Graphs | None = None

    @classmethod
    def treating(cls, token_budget: int, treatment: Treatment) -> Execution:
        """Return the execution that treats activations of all layers of all rows alike, as the user asked."""
        if treatment == "keep":
            return cls(token_budget, EVERYTHING)
        offload: Literal["never", "always"] = "always" if treatment == "offload" else "never"
        return cls(token_budget, NOTHING, offload, RECOMPUTED_HEAD_CHUNK)

    @property
    def in_pieces(self) -> bool:
        """Whether logits and MLPs are computed in small pieces."""
        return self.tile_tokens is not None

    @property
    def measures_room(self) -> bool:
        """Whether the number of kept layers follows from memory; False where it is given for all rows."""
        return self.room not in (None, EVERYTHING, NOTHING)

    def in_host_memory(self) -> Execution:
        """Return this execution with the least memory on the device.

        Inputs of recomputed layers wait in host memory; logits and MLPs are computed in small pieces.
        """
        return replace(self, offload="always", head_chunk=SMALL_HEAD_CHUNK, tile_tokens=SMALL_TILE)

    def smaller(self, rows: Sequence[int], least: int, layers: int) -> tuple[Execution, str] | None:
        """Return an execution that takes less memory and what it gives up, in words; None if nothing is left.

        What costs the least time is given up first:

        1. CUDA graphs hold memory and save only the launches of kernels.
        2. Fewer kept layers cost at most one more forward pass of a row, a third of its time.
        3. Rows of half the length cost launches, and time once they no longer fill the device. A shorter row keeps
           more layers in the same room, so steps 2 and 3 alternate.
        4. Inputs in host memory, small chunks of logits and tiled MLPs cost copies and many small launches. A run that
           asks for inputs in host memory has the pieces left to go to.
        5. Recomputing every layer of every row comes last: by the measurement, a short row takes no more than the
           longest one, so this helps only where the measurement was wrong.

        Args:
            rows: tokens of the rows that did not fit, all of one step.
            least: tokens below which rows cannot be cut: the longest pair, or a row whose length the user fixed.
            layers: layers of the model.
        """
        longest, shortest = max(rows), min(rows)
        if self.graphs is not None:
            return replace(self, graphs=None), "CUDA graphs are dropped"
        if self.measures_room and self.room is not None and self.room.kept(longest, layers) > 0:
            room = self.room.smaller(longest, layers)
            kept = room.kept(longest, layers)
            return replace(self, room=room), f"a row of {longest} tokens now keeps {kept} of {layers} layers"
        if longest > least:
            budget = max(least, longest // 2)
            return replace(self, token_budget=budget), f"rows now have at most {budget} tokens"
        if self.offload == "as needed":
            return self.in_host_memory(), "the inputs of layers now wait in host memory"
        if self.offload == "always" and not self.in_pieces:
            return self.in_host_memory(), "logits and MLPs are now computed in small pieces"
        if self.measures_room and self.room is not None and self.room.kept(shortest, layers) > 0:
            return replace(self, room=NOTHING), "all layers of all rows are now recomputed"
        return None

    def summary(self, layers: int) -> dict[str, Any]:
        """Return the settings as JSON values, with the layers that a row of `token_budget` keeps; null: not decided."""
        return {
            "token_budget": self.token_budget,
            "layers": layers,
            "kept_layers": None if self.room is None else self.room.kept(self.token_budget, layers),
            "offload": self.offload,
            "head_chunk_bytes": self.head_chunk,
            "tile_tokens": self.tile_tokens,
            "graph_lengths": [] if self.graphs is None else self.graphs.lengths,
        }


UNLIMITED = Execution(token_budget=2**24)
"""Everything at once: one row, layers as the model's owner set them, no pieces, no graphs."""
