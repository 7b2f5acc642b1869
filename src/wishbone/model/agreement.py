"""How closely two models agree: log-probabilities of real text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

TEXTS = (
    "The sky is blue because air scatters short waves of light more than long ones, and blue light is short.",
    "def mean(values):\n    if not values:\n        raise ValueError('empty')\n    return sum(values) / len(values)\n",
    "Thank you for your question! Here are three things to try: 1. restart the router; 2. move closer; 3. ask again.",
    "En 1815, le volcan Tambora entra en éruption, et l'année suivante n'eut pas d'été.",
)
MOST_TOKENS = 96


def real_sequences(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of a few texts: prose, code, chat and another language, at most 96 tokens of each."""
    ids = [tokenizer(text)["input_ids"][:MOST_TOKENS] for text in TEXTS]
    return [sequence for sequence in ids if len(sequence) > 1]


@torch.no_grad()
def sequence_logps(model: nn.Module, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return log p(token | tokens before it) of every token but the first of each sequence, [tokens], float32."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        found = []
        for sequence in sequences:
            ids = torch.tensor([sequence], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            found.append(logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].cpu())
        return torch.cat(found)
    finally:
        model.train(was_training)


def difference(one: Tensor, other: Tensor) -> float:
    """Return the mean of |one - other|, in nats a token; NaN if either holds one."""
    return float((one - other).abs().mean())
