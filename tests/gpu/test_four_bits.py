"""4-bit weights on a CUDA device: exact with respect to what their codes stand for, trained, merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from trainer.preference_runs import arguments, chat_pairs, losses

from wishbone import DPOConfig, DPOTrainer, FastLanguageModel
from wishbone.model.load import load_model
from wishbone.model.quantization import is_quantized

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("bitsandbytes")
    directory = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_four_bits_lose_no_more_than_ordinary_bfloat16(saved: str) -> None:
    from bitsandbytes.functional import dequantize_4bit

    model, _ = load_model(saved, device="cuda", dtype="bfloat16", load_in_4bit=True)
    plain, _ = load_model(saved, device="cuda", dtype="bfloat16")
    with torch.no_grad():
        for name, layer in model.named_modules():
            if getattr(getattr(layer, "weight", None), "quant_state", None):
                plain.get_submodule(name).weight.copy_(dequantize_4bit(layer.weight, layer.weight.quant_state))
    exact, _ = load_model(saved, device="cuda", dtype="float32")
    exact.load_state_dict(plain.state_dict())
    exact = exact.double()
    ids = torch.arange(3, 200, device="cuda")[None]

    def results(run: torch.nn.Module) -> list[torch.Tensor]:
        inputs = run.get_input_embeddings()(ids).detach().requires_grad_()
        logits = run(inputs_embeds=inputs).logits
        (gradient,) = torch.autograd.grad(logits.double().logsumexp(-1).sum(), inputs)
        return [logits.detach().double(), gradient.double()]

    for ours, ordinary, wanted in zip(results(model), results(plain), results(exact), strict=True):
        error, allowed = ((value - wanted).norm() / wanted.norm() for value in (ours, ordinary))
        assert error <= 1.5 * allowed


def test_four_bits_are_trained_and_merged(saved: str, tmp_path: Path) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(saved, load_in_4bit=True)
    model = FastLanguageModel.get_peft_model(model, r=8)
    assert is_quantized(model)
    options = arguments(tmp_path, use_cpu=False, bf16=True, dataloader_pin_memory=True, optim="adamw_8bit")
    trainer = DPOTrainer(model, args=DPOConfig(**options), train_dataset=chat_pairs(40), processing_class=tokenizer)
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.float32}
    trainer.train()
    assert trainer.form_reason is None
    assert losses(trainer)[0] == pytest.approx(0.693147, abs=1e-4)
    found = trainer.model.save_pretrained_merged(tmp_path / "merged")
    assert found.difference <= found.allowed
