"""A reference made of adapter copies is the weighted mean of earlier policies' weights."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_model, tiny_pairs

from wishbone.data.batch import TokenizedPair
from wishbone.errors import RequestError
from wishbone.policy.policy import Policy
from wishbone.reference.reference import SeparateModel
from wishbone.reference.synchronized import SynchronizedAdapter

PAIRS = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(4)]


def adapted(**options: object) -> PeftModel:
    config = LoraConfig(r=3, lora_alpha=7, **{"target_modules": "all-linear", **options})
    return get_peft_model(tiny_model("llama", dtype=torch.float64), config, autocast_adapter_dtype=False)


def learn(model: PeftModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.1


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_it_is_the_mean_of_the_weights(options: dict[str, object]):
    model = adapted(**options)
    base = tiny_model("llama", dtype=torch.float64)
    expected = copy.deepcopy(base)
    policy = Policy(model)
    reference = SynchronizedAdapter(policy)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    random_state = torch.random.get_rng_state()
    for seed, mixup in enumerate((0.6, 0.3, 1.0, 0.5)):
        separate = SeparateModel(Policy(expected))
        batch = policy.collate(PAIRS)
        torch.testing.assert_close(reference.logps(batch), separate.logps(batch), rtol=1e-6, atol=1e-6)
        learn(model, seed)
        merged = copy.deepcopy(model).merge_and_unload()
        reference.synchronize(mixup)
        with torch.no_grad():
            for old, new in zip(expected.parameters(), merged.parameters(), strict=True):
                old.mul_(1 - mixup).add_(new, alpha=mixup)
    torch.testing.assert_close(reference.logps(batch), SeparateModel(Policy(expected)).logps(batch))
    assert model.active_adapter == "default"
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trainable
    assert torch.equal(torch.random.get_rng_state(), random_state)


@pytest.mark.slow
def test_copies_without_weight_are_dropped():
    model = adapted()
    reference = SynchronizedAdapter(Policy(model))
    for _ in range(3):
        reference.synchronize(1.0)
    assert reference.adapters == ["ref_sync_3"]
    for _ in range(16):
        reference.synchronize(0.8)
    assert len(reference.adapters) == 12  # 0.2 ** 11 = 2e-8 is the last that counts


@pytest.mark.parametrize("options", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}])
def test_other_adapters_are_refused(options: dict[str, object]):
    with pytest.raises(RequestError, match="sync_ref_model with an adapter needs plain LoRA"):
        SynchronizedAdapter(Policy(adapted(**options)))
