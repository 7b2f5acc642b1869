"""The workloads: shapes of models, lengths of pairs, and the operations that a pair needs at least.

Lengths are log-normal around the median prompt and completion published for public preference sets (table of the
README of arXiv:2410.20305's collection); both completions of a pair have the same distribution. Tokens are random,
because speed and memory do not depend on their meaning.

A pair has u unique tokens, of which s are scored by a head of H x V parameters. The W parameters of the layers are
frozen and the adapter is too small to count. Each token needs three products with every parameter: the reference's
forward pass, the policy's, and the gradient of the inputs. So

    useful FLOP = 2 passes (W u + H V s),    passes = 3, or 2 if the reference's values are stored.

Recomputation, padding, prompts that are computed twice and attention are not counted: a system that does more of it
reaches fewer useful FLOP/s.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass

MAX_LENGTH = 2048
"""Tokens of prompt and completion together, at most."""

END = 1
"""The end-of-sequence token that trainers put after a completion."""


@dataclass(frozen=True)
class Size:
    """Shape of a Llama model."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def layer_weights(self) -> int:
        """Parameters of the linear maps in all layers."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.key_value_heads * head
        return self.layers * (attention + 3 * self.hidden * self.inner)


SIZES = {
    "70b": Size(8192, 28672, 80, 64, 8, 128256),  # Llama-3.1-70B
    "8b": Size(4096, 14336, 32, 32, 8, 128256),  # Llama-3.1-8B
    "1b": Size(2048, 8192, 16, 32, 8, 128256, tied=True),  # Llama-3.2-1B
    "135m": Size(576, 1536, 30, 9, 3, 49152, tied=True),  # SmolLM2-135M
    "tiny": Size(64, 128, 2, 4, 2, 2000),
}


@dataclass(frozen=True)
class Lengths:
    """Tokens of a pair, including the end tokens of both completions."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def unique(self) -> int:
        """Tokens of the pair, its prompt counted once."""
        return self.prompt + self.chosen + self.rejected

    @property
    def two_sequences(self) -> int:
        """Tokens of the pair as two sequences without padding."""
        return self.unique + self.prompt

    @property
    def scored(self) -> int:
        """Tokens whose log-probability counts."""
        return self.chosen + self.rejected


@dataclass(frozen=True)
class Workload:
    """Median tokens of prompt and completion, and the standard deviation of their logarithms."""

    prompt: int
    completion: int
    sigma: float


WORKLOADS = {
    "ultrafeedback": Workload(121, 288, 0.8),
    "helpsteer": Workload(669, 106, 0.7),
    "capybara": Workload(712, 448, 0.6),
    "full": Workload(1024, 1023, 0.0),  # both sequences at full length: the most that memory has to hold
    "tiny": Workload(12, 20, 0.4),
}


@dataclass(frozen=True)
class Case:
    """A workload and the pairs of a step: `WORKLOAD[:BATCH[xACCUMULATION]]`, 8 pairs in one batch by default."""

    workload: str
    batch: int = 8
    accumulation: int = 1

    @classmethod
    def parse(cls, text: str) -> Case:
        """Parse a case of the command line.

        Raises:
            ValueError: no such workload, or no whole numbers above 0.
        """
        workload, _, pairs = text.partition(":")
        if workload not in WORKLOADS:
            raise ValueError(f"workload {workload!r} is not known: choose one of {', '.join(WORKLOADS)}")
        if workload == text:
            return cls(workload)
        numbers = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", pairs)
        if numbers is None:
            raise ValueError(f"case {text!r}: pairs are BATCH or BATCHxACCUMULATION, whole numbers above 0")
        return cls(workload, int(numbers[1]), int(numbers[2] or 1))

    @property
    def pairs_a_step(self) -> int:
        """Pairs of an optimizer step."""
        return self.batch * self.accumulation

    def __str__(self) -> str:
        return f"{self.workload}:{self.batch}" + (f"x{self.accumulation}" if self.accumulation > 1 else "")


def draw_lengths(workload: str, count: int, seed: int = 0) -> list[Lengths]:
    """Return the lengths of `count` pairs, always the same for one seed."""
    shape = WORKLOADS[workload]
    rng = random.Random(seed)

    def draw(median: int) -> int:
        return max(4, int(median * math.exp(rng.gauss(0, shape.sigma))))

    pairs = []
    for _ in range(count):
        prompt = min(draw(shape.prompt), MAX_LENGTH // 2)
        chosen, rejected = (min(draw(shape.completion), MAX_LENGTH - prompt - END) for _ in range(2))
        pairs.append(Lengths(prompt, chosen + END, rejected + END))
    return pairs


def long_pair(tokens: int) -> Lengths:
    """Return a pair of two sequences of `tokens` tokens each, a quarter of them completion."""
    completion = max(tokens // 4, END + 1)
    return Lengths(tokens - completion, completion, completion)


def texts(pairs: list[Lengths], vocabulary: int, seed: int = 1) -> list[dict[str, str]]:
    """Return rows of random words; each word is one token of `random_model`'s tokenizer."""
    rng = random.Random(seed)

    def words(count: int) -> str:
        return "".join(f"t{rng.randrange(10, vocabulary)} " for _ in range(count))

    return [
        {"prompt": words(pair.prompt), "chosen": words(pair.chosen - END), "rejected": words(pair.rejected - END)}
        for pair in pairs
    ]


def useful_flop(size: Size, pairs: list[Lengths], *, reference_stored: bool = False) -> int:
    """Return the operations that a step on these pairs needs at least (see the module's docstring)."""
    products = sum(size.layer_weights * pair.unique + size.hidden * size.vocabulary * pair.scored for pair in pairs)
    return 2 * (2 if reference_stored else 3) * products
