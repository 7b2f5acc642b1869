"""Whether a GGUF file holds the model that was written into it: it is read back, through transformers, and compared.

Three things are compared: the token ids of texts, each weight, and the log-probabilities of text. A weight may differ
by what rounding to the file's type explains: for blocks of 32 whose largest element is m, an 8-bit step is m / 127, so
the error has at most sqrt(32) / 254 = 2.2 % of the block's norm.

The log-probabilities may differ by three times as much as those of weights with errors of the same size and other
signs: rounding errors have no direction, while a mistake has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from wishbone.errors import RequestError, counted, one_line, some_of
from wishbone.model.agreement import difference, sequence_logps
from wishbone.model.gguf_header import read_header
from wishbone.model.gguf_tokenizer import UNFIT, gguf_tokenizer

VECTORS = 1e-3
"""Largest relative error of a vector, which is float32; a norm of Gemma is stored with 1 added."""
LIMITS = {"f32": 1e-6, "f16": 2**-10, "bf16": 2**-8, "q8_0": 0.0223}
BITS = {"2": 0.7, "3": 0.5, "4": 0.35, "5": 0.18, "6": 0.09}
"""Largest relative error of a matrix in a file, by kind or by the digit in the kind's name."""
FLOAT_NOISE, LARGEST_NOISE = 1e-4, 1e-3
"""Nats by which float32 arithmetic in another order differs at most: on average, and for one token."""
SIZES = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """How closely a written model agrees with the one in memory, in nats a token.

    Attributes:
        mean, largest: of |log p written - log p in memory| over the tokens of the texts.
        allowed_mean, allowed_largest: what rounding to the written dtype explains.
    """

    mean: float
    largest: float
    allowed_mean: float
    allowed_largest: float

    @property
    def holds(self) -> bool:
        """Whether rounding explains the difference."""
        return self.mean <= self.allowed_mean and self.largest <= self.allowed_largest


@torch.no_grad()
def check_gguf(
    file: Path,
    kind: str,
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Sequence[int]],
    expected: Tensor,
) -> Agreement:
    """Read a GGUF file back and compare it with what was written.

    Args:
        file: that was written.
        kind: of the file, as `gguf_kinds` names it.
        model: the directory that it was written from, weights in the dtype of the file or in float32.
        tokenizer: of the model.
        sequences: token ids of texts.
        expected: their log-probabilities, as `sequence_logps` returns them, of the model in memory.

    Raises:
        RequestError: the file is damaged, cannot be read by transformers, or holds other tokens or other weights.
    """
    _compare_tokens(file, tokenizer, sequences)
    config = AutoConfig.from_pretrained(model)
    reloaded = _reloaded(file, config)
    found = sequence_logps(reloaded, sequences)
    _turn_errors(reloaded, model, LIMITS.get(kind) or next(BITS[letter] for letter in kind if letter in BITS))
    turned = sequence_logps(reloaded, sequences)
    return Agreement(
        difference(found, expected),
        float((found - expected).abs().max()),
        3 * difference(turned, expected) + FLOAT_NOISE,
        3 * float((turned - expected).abs().max()) + LARGEST_NOISE,
    )


def _compare_tokens(file: Path, tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int]]) -> None:
    rebuilt = gguf_tokenizer(file, read_header(file).values)
    for ids in sequences:
        text = tokenizer.decode(ids)
        if list(rebuilt(text)["input_ids"]) != list(tokenizer(text)["input_ids"]):
            raise RequestError(
                f"the tokenizer that {file.name} describes turns {text[:40]!r} into other tokens than the model's; "
                "nothing was kept. Use --merged and llama.cpp's own convert_hf_to_gguf.py"
            )


def _reloaded(file: Path, config: PretrainedConfig) -> Any:
    """The model of a file in float32; settings that transformers does not read from GGUF are those of `config`."""
    try:
        described = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        wrong = [name for name in SIZES if getattr(described, name) != getattr(config, name)]
        if wrong:
            raise RequestError(f"{file.name} describes another {some_of(wrong)} than the model has; nothing was kept")
        if config.model_type == "mistral":  # GGUF has Mistral as Llama, and without a window they are the same
            config = described
        model, report = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, config=config, dtype=torch.float32, output_loading_info=True
        )
    except RequestError:
        raise
    except UNFIT as error:
        raise RequestError(
            f"{file.name} cannot be read back ({one_line(error)}); nothing was kept. Use --merged instead"
        ) from error
    if lacking := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        lacks = counted(len(lacking), "weight")
        raise RequestError(f"{file.name} lacks {lacks} ({some_of(lacking)}); nothing was kept")
    return model.eval()


def _turn_errors(reloaded: Any, model: Path, limit: float) -> None:
    """Turn the signs of the errors of each weight at random, after a look at their size."""
    generator = torch.Generator().manual_seed(0)
    ours = dict(reloaded.named_parameters())
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in set(file.keys()) & ours.keys():
                exact = file.get_tensor(name).float()
                error = ours[name] - exact
                most = max(limit, VECTORS) if exact.ndim == 1 else limit
                if not error.norm() <= most * exact.norm() + 1e-6:
                    raise RequestError(
                        f"{name} was read back with an error of {error.norm() / exact.norm():.1%}, and rounding "
                        f"explains {most:.1%}; nothing was kept. Use --merged instead"
                    )
                signs = torch.randint(0, 2, error.shape, generator=generator) * 2 - 1
                ours[name].copy_(exact + error * signs)
