"""An embedding in host memory gives the same numbers and stays where it is."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_pairs
from torch import nn

from wishbone.data.batch import TokenizedPair
from wishbone.errors import RequestError
from wishbone.model.host_embedding import HostEmbedding, compute_device, keep_embedding_on_host
from wishbone.policy.policy import Policy

PAIRS = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(4)]


def test_losses_and_gradients_are_the_same():
    outcomes = []
    for on_host in (False, True):
        model = tiny_model("llama")
        if on_host:
            keep_embedding_on_host(model)
        torch.manual_seed(0)
        policy = Policy(get_peft_model(model, LoraConfig(r=3, init_lora_weights=False)))
        with policy.running():
            logps = policy.token_scores(policy.collate(PAIRS)).logps
            logps.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
        outcomes.append((logps.detach(), gradient))
    assert torch.equal(outcomes[0][0], outcomes[1][0]) and torch.equal(outcomes[0][1], outcomes[1][1])


def test_lines_that_were_picked_before_take_the_place_of_a_lookup():
    model = tiny_model("llama")
    keep_embedding_on_host(model)
    embedding, ids = model.get_input_embeddings(), torch.tensor([[3, 5]])
    lines = embedding.lines(ids)
    memory = torch.zeros_like(lines)
    with embedding.given(memory):
        out = embedding(ids)
        assert out.data_ptr() == memory.data_ptr()
        out.requires_grad_()  # as PEFT's hook on an embedding does
        memory.copy_(lines)
        assert torch.equal(out, lines)
    assert torch.equal(embedding(ids), lines) and embedding(ids).data_ptr() != memory.data_ptr()


def test_it_stays_when_the_model_moves_and_is_saved_with_it():
    model = tiny_model("llama")
    names = set(model.state_dict())
    keep_embedding_on_host(model)
    model.to("meta").to(torch.float64)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, HostEmbedding) and isinstance(embedding, nn.Embedding)
    assert embedding.weight.device.type == "cpu" and embedding.weight.dtype == torch.float32
    assert compute_device(model).type == "meta"
    assert set(model.state_dict()) == names


def test_a_table_that_is_also_the_head_is_refused():
    with pytest.raises(RequestError, match="is also its output head"):
        keep_embedding_on_host(tiny_model("llama", tie_word_embeddings=True))


def test_an_embedding_of_another_kind_is_refused():
    model = tiny_model("llama")

    class Scaled(nn.Embedding):
        pass

    model.set_input_embeddings(Scaled(4, 4))
    with pytest.raises(RequestError, match=r"takes an nn\.Embedding, and this model has Scaled"):
        keep_embedding_on_host(copy.deepcopy(model))
