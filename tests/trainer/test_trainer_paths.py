"""Which path a run takes, what it says of it, and that the numbers stay TRL's."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
import trl
from peft import LoraConfig, get_peft_model
from tiny import tiny_tokenizer

from trainer.preference_runs import adapter, arguments, chat_pairs, losses, model_for
from trainer.side_by_side import trainers, under_its_set
from wishbone import DPOConfig, DPOTrainer
from wishbone.errors import RequestError


def test_a_model_that_cannot_take_the_mask_is_named_and_trained_on_plain_sequences(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    results = []
    for trainer_class, config_class in ((trl.DPOTrainer, trl.DPOConfig), (DPOTrainer, DPOConfig)):
        with caplog.at_level(logging.WARNING, logger="wishbone"):
            trainer = trainer_class(
                model_for(tokenizer, "falcon"),
                args=config_class(**arguments(tmp_path)),
                train_dataset=chat_pairs(40),
                processing_class=tokenizer,
                peft_config=LoraConfig(r=4, target_modules=["query_key_value"]),
            )
        trainer.train()
        results.append(losses(trainer))
    assert trainer.preference_step.policy.form == "plain"
    assert "is trained on plain sequences: its layers do not run without a mask of their own" in caplog.text
    assert results[1] == pytest.approx(results[0], rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"loss_type": "apo_zero"}])
def test_full_fine_tuning_with_a_separate_reference(tmp_path: Path, options: dict[str, object]) -> None:
    tokenizer = tiny_tokenizer()
    results = []
    for trainer_class, config_class in ((trl.DPOTrainer, trl.DPOConfig), (DPOTrainer, DPOConfig)):
        trainer = trainer_class(
            model_for(tokenizer),
            model_for(tokenizer),
            args=config_class(**arguments(tmp_path, learning_rate=1e-3, **options)),
            train_dataset=chat_pairs(40),
            processing_class=tokenizer,
        )
        trainer.train()
        results.append((losses(trainer), torch.cat([p.detach().flatten() for p in trainer.model.parameters()])))
    (their_losses, their_weights), (our_losses, our_weights) = results
    assert trainer.form_reason is None
    assert our_losses == pytest.approx(their_losses, rel=1e-5)
    assert (our_weights - their_weights).norm() <= 1e-4 * their_weights.norm()


def test_an_existing_adapter_is_compared_with_its_frozen_copy(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    results = []
    for trainer_class, config_class in ((trl.DPOTrainer, trl.DPOConfig), (DPOTrainer, DPOConfig)):
        model = get_peft_model(model_for(tokenizer), LoraConfig(r=4, target_modules="all-linear"))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        trainer = trainer_class(
            model,
            args=config_class(**arguments(tmp_path)),
            train_dataset=chat_pairs(40),
            processing_class=tokenizer,
        )
        trainer.train()
        results.append((losses(trainer), adapter(trainer)))
    (their_losses, their_weights), (our_losses, our_weights) = results
    assert our_losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert our_losses == pytest.approx(their_losses, rel=1e-5)
    assert (our_weights - their_weights).norm() <= 1e-4 * their_weights.norm()
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all(".default." in name for name in trained)


def test_evaluation_has_trls_metrics(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    results = []
    for trainer_class, config_class in ((trl.DPOTrainer, trl.DPOConfig), (DPOTrainer, DPOConfig)):
        trainer = trainer_class(
            model_for(tokenizer),
            args=config_class(**arguments(tmp_path, per_device_eval_batch_size=4)),
            train_dataset=chat_pairs(16),
            eval_dataset={"one": chat_pairs(8, seed=1), "two": chat_pairs(12, seed=2)},
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
        )
        trainer.train()
        results.append(trainer)
    ours = results[1].evaluate()
    theirs = {}
    for name, heldout in results[0].eval_dataset.items():
        theirs |= under_its_set(results[0].evaluate(heldout, metric_key_prefix=f"eval_{name}"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        if "rewards" in name or name.endswith("loss") or "logps" in name:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compute_metrics": lambda prediction: {}}, "compute_metrics reads logits"),
        ({"data_collator": lambda rows: rows}, "a data collator was given"),
    ],
)
def test_what_only_trl_does_goes_to_trl_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, object], reason: str
) -> None:
    tokenizer = tiny_tokenizer()
    with caplog.at_level(logging.WARNING, logger="wishbone"):
        trainer = DPOTrainer(
            model_for(tokenizer),
            args=DPOConfig(**arguments(tmp_path)),
            train_dataset=chat_pairs(16),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
            **options,
        )
    assert trainer.preference_step is None and trainer.form_reason == reason
    assert reason in caplog.text
    with pytest.raises(RequestError, match=f"loss_type simpo needs Wishbone's step.*{reason}"):
        DPOTrainer(
            model_for(tokenizer),
            args=DPOConfig(**arguments(tmp_path, loss_type="simpo")),
            train_dataset=chat_pairs(16),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
            **options,
        )


@pytest.mark.parametrize("options", [{}, {"loss_type": "aot"}, {"gradient_checkpointing": True}])
def test_compute_loss_can_be_differentiated_as_trls(tmp_path: Path, options: dict[str, object]) -> None:
    pairs: list[torch.Tensor] = []
    for whose in trainers(tmp_path, {"per_device_train_batch_size": 4, **options}):
        model = whose.model.train()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data = torch.linspace(-0.1, 0.1, weight.numel()).view(weight.shape)
        trained = [weight for _, weight in sorted(model.named_parameters()) if weight.requires_grad]
        for weight in trained:
            weight.grad = torch.ones_like(weight)
        inputs = whose._prepare_inputs(next(iter(whose.get_train_dataloader())))
        loss = whose.compute_loss(model, inputs)
        assert all(weight.grad is not None and (weight.grad == 1).all() for weight in trained)
        (2 * loss).backward()
        pairs.append(torch.cat([loss.detach()[None], *(weight.grad.flatten() - 1 for weight in trained)]))
        with torch.no_grad():
            assert not whose.compute_loss(model, inputs).requires_grad
    theirs, ours = pairs
    assert theirs.norm() > 0.7 and (ours - theirs).norm() <= 1e-5 * theirs.norm()
