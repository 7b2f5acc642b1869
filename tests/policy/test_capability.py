"""Why a family does not run in one row with a shared prefix, in words that say what its layers do."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model
from transformers import BertConfig, BertLMHeadModel

from wishbone.errors import RequestError
from wishbone.policy.capability import choose_form

REASONS = {
    "falcon": "its layers do not run without a mask of their own",
    "llama4_text": "treats sequences of more than 63 tokens differently",
}


@pytest.mark.parametrize("family", REASONS)
def test_reasons_are_words(family: str) -> None:
    capability = choose_form(tiny_model(family))
    assert capability.form == "plain" and capability.reason is not None
    assert REASONS[family] in capability.reason
    assert "prefix_layout" not in capability.reason and "\n" not in capability.reason


def test_an_error_of_the_model_itself_is_told_in_words() -> None:
    model = tiny_model("llama")
    model.config.vocab_size = 10_000  # more than its embedding has rows, as in a config.json of another model
    with pytest.raises(RequestError, match=r"LlamaForCausalLM does not run on text alone.*IndexError.*config\.json"):
        choose_form(model)


def test_tokens_that_see_later_ones_are_told() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    for is_decoder in (True, False):
        config = BertConfig(**sizes, vocab_size=128, max_position_embeddings=64, is_decoder=is_decoder)
        model = BertLMHeadModel(config).eval()
        for weight in model.parameters():
            if weight.ndim >= 2:
                torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        found = choose_form(model)
        assert found.form == "own_logits"
        assert found.reason is not None
        assert ("depend on tokens or padding that come later" in found.reason) is not is_decoder
