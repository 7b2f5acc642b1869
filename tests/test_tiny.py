"""The tiny models run on the CPU in float32 and float64, and their attention reaches back."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, VOCABULARY, WINDOW, tiny_model, tiny_pairs, tiny_tokenizer

IDS = torch.randint(3, VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_forwards_and_looks_back_and_never_ahead(family: str) -> None:
    single, double = tiny_model(family), tiny_model(family, dtype=torch.float64)
    assert {weight.dtype for weight in double.parameters()} == {torch.float64}
    changed = IDS.clone()
    changed[0, 10] = 3 + (changed[0, 10] - 2) % (VOCABULARY - 3)
    with torch.no_grad():
        logits, other = double(IDS).logits, double(changed).logits
        error = (single(IDS).logits - logits).abs().max()
    assert error < 1e-4 * logits.abs().max()
    difference = (logits - other)[0].abs().amax(-1)
    assert torch.all(difference[:10] < 1e-6)
    assert torch.all(difference[10:14] > 1e-3)


def test_a_window_ends_what_a_token_sees() -> None:
    model = tiny_model("mistral", num_hidden_layers=1)
    changed = IDS.clone()
    changed[0, 2] = 3 + (changed[0, 2] - 2) % (VOCABULARY - 3)
    with torch.no_grad():
        difference = (model(IDS).logits - model(changed).logits)[0].abs().amax(-1)
    assert torch.all(difference[2 : 2 + WINDOW] > 1e-3)
    assert torch.all(difference[2 + WINDOW :] < 1e-6)


def test_the_seed_decides() -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([weight.flatten() for weight in tiny_model("qwen3_moe", seed=seed).parameters()])

    first = weights(1)
    torch.rand(5)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


def test_the_tokenizer_encodes_any_text_and_chats() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer("Grüße 中").input_ids) == "Grüße 中"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2)
    assert tiny_tokenizer(chat=False).chat_template is None


def test_pairs_are_ragged_and_repeatable() -> None:
    pairs = tiny_pairs(20, vocab=10)
    assert pairs == tiny_pairs(20, vocab=10)
    assert {token for pair in pairs for part in pair for token in part} == set(range(3, 10))
    assert len({len(part) for pair in pairs for part in pair}) > 5
