"""What TRL refuses and Wishbone does: an adapter on the output head, and a reference that follows an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import tiny_tokenizer
from torch.nn.functional import log_softmax, logsigmoid

from trainer.preference_runs import arguments, chat_pairs, losses, model_for
from wishbone import DPOConfig, DPOTrainer
from wishbone.errors import RequestError
from wishbone.reference.synchronized import SynchronizedAdapter
from wishbone.trainer.moving_reference import FILE, load_reference

ON_HEAD = LoraConfig(r=4, target_modules=["q_proj", "lm_head", "embed_tokens"])


def trainer_for(
    tmp_path: Path, peft_config: LoraConfig | None, model: object = None, pairs: int = 40, **options: object
) -> DPOTrainer:
    tokenizer = tiny_tokenizer()
    return DPOTrainer(
        model if model is not None else model_for(tokenizer),
        args=DPOConfig(**arguments(tmp_path, **options)),
        train_dataset=chat_pairs(pairs),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def logp(model: PeftModel, prompt: list[int], completion: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + completion])
    logps = log_softmax(model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double(), -1)
    return logps.gather(1, ids[0, len(prompt) :, None]).sum()


def plain_losses(model: PeftModel, pairs: object, steps: int) -> list[float]:
    """DPO by the book: two forward passes a pair through the model's own logits, and AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    means = []
    for _ in range(steps):
        pair_losses = []
        for row in pairs:
            answers = [row["chosen_ids"], row["rejected_ids"]]
            with torch.no_grad(), model.disable_adapter():
                reference = [logp(model, row["prompt_ids"], answer) for answer in answers]
            policy = [logp(model, row["prompt_ids"], answer) for answer in answers]
            pair_losses.append(-logsigmoid(0.1 * (policy[0] - reference[0] - policy[1] + reference[1])))
        loss = torch.stack(pair_losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        means.append(float(loss))
    return means


@pytest.mark.parametrize("given", ["peft_config", "adapted model"])
def test_an_adapter_on_head_and_embeddings_is_trained_as_the_book_says(tmp_path: Path, given: str):
    settings = {"max_steps": 3, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4, "pairs": 4}
    if given == "peft_config":
        trainer = trainer_for(tmp_path, ON_HEAD, **settings)
        assert list(trainer.model.peft_config) == ["default"]
    else:
        torch.manual_seed(0)
        trainer = trainer_for(tmp_path, None, get_peft_model(model_for(tiny_tokenizer()), ON_HEAD), **settings)
    assert trainer.form_reason is None
    twin = get_peft_model(model_for(tiny_tokenizer()), ON_HEAD)
    twin.load_state_dict({n: p for n, p in trainer.model.state_dict().items() if ".ref" not in n})
    trainer.train()
    assert losses(trainer) == pytest.approx(plain_losses(twin, trainer.train_dataset, 3), rel=1e-5)
    trained = dict(trainer.model.named_parameters())
    moved = [name for name, parameter in trained.items() if "lora_B.default" in name and bool(parameter.any())]
    assert any("lm_head" in name for name in moved)


def test_an_adapter_on_the_head_of_a_model_by_name_is_refused(tmp_path: Path):
    with pytest.raises(RequestError, match="load it with AutoModelForCausalLM"):
        trainer_for(tmp_path, ON_HEAD, "some/model")


def test_an_adapter_on_the_head_needs_wishbones_step(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    with pytest.raises(RequestError, match="an adapter on the output head needs Wishbone's step"):
        DPOTrainer(
            model_for(tokenizer),
            args=DPOConfig(**arguments(tmp_path)),
            data_collator=lambda rows: rows,
            train_dataset=chat_pairs(8),
            processing_class=tokenizer,
            peft_config=ON_HEAD,
        )
    with pytest.raises(RequestError, match="precompute_ref_log_probs runs TRL's own path"):
        trainer_for(tmp_path, None, get_peft_model(model_for(tokenizer), ON_HEAD), precompute_ref_log_probs=True)


LORA = LoraConfig(r=4, target_modules="all-linear")
SYNC = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5, "max_steps": 6}


def test_the_reference_follows_the_adapter_on_schedule(tmp_path: Path):
    fixed, moving = trainer_for(tmp_path, LORA, max_steps=6), trainer_for(tmp_path, LORA, **SYNC)
    fixed.train()
    moving.train()
    assert losses(moving)[:2] == losses(fixed)[:2]
    assert losses(moving)[2:] != losses(fixed)[2:]
    reference = moving.preference_step.reference
    assert isinstance(reference, SynchronizedAdapter)
    assert reference.adapters == ["ref_sync_1", "ref_sync_2", "ref_sync_3"]
    assert moving.args.sync_ref_model is True


@pytest.mark.parametrize("adapter", [LORA, None], ids=["of an adapter", "of all weights"])
def test_a_moving_reference_survives_a_resumed_run(tmp_path: Path, adapter: LoraConfig | None):
    whole = trainer_for(tmp_path / "whole", adapter, **SYNC)
    whole.train()
    first = trainer_for(tmp_path / "parts", adapter, **SYNC, save_strategy="steps", save_steps=4)
    first.train()
    second = trainer_for(tmp_path / "parts", adapter, **SYNC)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    assert losses(second)[-2:] == losses(whole)[-2:]


def test_a_checkpoint_without_the_moving_reference_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = trainer_for(tmp_path, None, **SYNC, save_strategy="steps", save_steps=4)
    first.train()
    load_reference(first.ref_model, tmp_path / "checkpoint-4")
    assert "starts again" not in caplog.text
    (tmp_path / "checkpoint-4" / FILE).unlink()
    load_reference(first.ref_model, tmp_path / "checkpoint-4")
    assert "starts again" in caplog.text


def test_a_moving_reference_and_fixed_values_exclude_each_other(tmp_path: Path):
    with pytest.raises(RequestError, match="sync_ref_model moves the reference"):
        trainer_for(tmp_path, LORA, sync_ref_model=True, precompute_ref_log_probs=True)
