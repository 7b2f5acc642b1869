"""One step of the engine against two plain sequences a pair and textbook log-softmax, for many model families."""

from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel
from tiny import tiny_model, tiny_pairs
from torch import Tensor, nn
from transformers import PreTrainedModel

from wishbone.data.batch import TokenizedPair, truncated_pair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.model.adapter import add_adapter
from wishbone.policy.capability import choose_form
from wishbone.policy.policy import Policy
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.reference.reference import AdapterDisabled, ReferencePolicy

SHARED = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3", "gpt_neox"]
SCALED_HEADS = ["cohere", "granite"]
RECURRENT = ["minimax"]
AS_MASK = ["mamba"]
"""Hand their mask down and no keyword arguments."""
SHORT = ["llama4_text"]
"""Treat long sequences otherwise, so that a run has to say how long its sequences are."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}


def pairs_of(model: PreTrainedModel) -> list[TokenizedPair]:
    return [
        truncated_pair(p, c, r) for p, c, r in tiny_pairs(5, vocab=model.config.get_text_config().vocab_size, seed=4)
    ]


def with_trained_adapter(model: PreTrainedModel, dtype: torch.dtype) -> PeftModel:
    """An adapter whose output is not zero, in the model's own dtype."""
    targets = ["in_proj", "x_proj"] if model.config.model_type == "mamba" else "all-linear"
    adapted = add_adapter(model, rank=4, alpha=8, dropout=0.0, target_modules=targets, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype) * 0.3
    return adapted.eval()


def textbook_logp(model: nn.Module, ids: list[int], start: int) -> Tensor:
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    log_probs = torch.log_softmax(logits, -1)
    return sum((log_probs[t - 1, ids[t]] for t in range(max(start, 1), len(ids))), torch.zeros((), dtype=torch.float64))


def textbook_dpo(model: PeftModel, pairs: list[TokenizedPair], beta: float) -> Tensor:
    """Two plain sequences a pair, the reference with the adapter off, and eq. 7 of arXiv 2305.18290."""
    total = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        policy = [textbook_logp(model, ids, start) for ids, start in pair.sequences()]
        with torch.no_grad(), model.disable_adapter():
            reference = [textbook_logp(model, ids, start) for ids, start in pair.sequences()]
        margin = beta * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
        total = total + torch.log1p(torch.exp(-margin)) / len(pairs)
    return total


def gradients(model: nn.Module) -> Tensor:
    found = [p.grad.flatten().double() for p in model.parameters() if p.requires_grad and p.grad is not None]
    model.zero_grad()
    return torch.cat(found)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", SHARED + SCALED_HEADS + RECURRENT + AS_MASK + SHORT)
def test_step_equals_two_plain_sequences(family: str, dtype: torch.dtype) -> None:
    model = with_trained_adapter(tiny_model(family, dtype=dtype), dtype)
    pairs = pairs_of(model.get_base_model())
    longest = max(len(ids) for pair in pairs for ids, _ in pair.sequences())
    capability = choose_form(model, max_length=longest)
    assert capability.form == "shared_prefix"
    assert capability.layout_as_mask is (family in AS_MASK)

    policy = Policy(model, form=capability.form, layout_as_mask=capability.layout_as_mask)
    step = PreferenceStep(policy, AdapterDisabled(policy), Objective())
    loss = step.backward([pairs], PairMetrics(0.1), Execution(token_budget=90))
    got = gradients(model)

    expected_loss = textbook_dpo(model, pairs, beta=0.1)
    expected_loss.backward()
    expected = gradients(model)

    assert got.norm() > 0 and abs(expected_loss.item() - math.log(2)) > 1e-4
    assert float(loss) == pytest.approx(expected_loss.item(), rel=TOLERANCE[dtype])
    assert (got - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_full_fine_tuning_trains_head_and_embeddings(family: str) -> None:
    model = tiny_model(family, dtype=torch.float64).eval()
    pairs = pairs_of(model)
    policy = Policy(model)
    step = PreferenceStep(policy, ZeroReference(), Objective())
    step.backward([pairs], PairMetrics(0.1), Execution(token_budget=60))
    got = gradients(model)
    total = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        chosen, rejected = (textbook_logp(model, ids, start) for ids, start in pair.sequences())
        total = total + torch.log1p(torch.exp(-0.1 * (chosen - rejected))) / len(pairs)
    total.backward()
    expected = gradients(model)
    assert (got - expected).norm() <= 1e-6 * expected.norm()


class ZeroReference(ReferencePolicy):
    def logps(self, batch: object, execution: object) -> Tensor:
        return torch.zeros(2 * len(batch.pairs))  # type: ignore[attr-defined]
