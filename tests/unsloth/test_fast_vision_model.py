"""FastVisionModel: Unsloth's arguments for models that read images."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

pytest.importorskip("PIL")

from tiny_vision import several_images, vision_family
from trainer.preference_runs import arguments, losses
from trainer.side_by_side import assert_on_step
from transformers import AutoProcessor

from wishbone import DPOConfig, DPOTrainer, FastLanguageModel, FastVisionModel
from wishbone.errors import RequestError
from wishbone.policy.activations import chosen_activations

CHOICES = ("finetune_vision_layers", "finetune_language_layers", "finetune_attention_modules", "finetune_mlp_modules")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    processor, model = vision_family("idefics3")
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    try:
        AutoProcessor.from_pretrained(directory)
    except ValueError as error:
        if "torchvision" not in str(error):
            raise
        pytest.skip("this version of transformers loads the family's processor with torchvision alone")
    return str(directory)


def load(name: str, **options: Any) -> Any:
    return FastVisionModel.from_pretrained(name, **{"device_map": "cpu", "load_in_4bit": False, **options})


def adapted(model: Any, **options: Any) -> set[str]:
    """Names of the layers that get an adapter, by what they are."""
    peft = FastVisionModel.get_peft_model(model, r=4, **options)
    names = {name.partition(".lora_A")[0] for name, _ in peft.named_parameters() if ".lora_A." in name}
    peft.unload()
    kinds = {"vision": "vision_model", "projection": "connector", "language": "text_model"}
    of = {name: next(kind for kind, part in kinds.items() if part in name) for name in names}
    return {f"{of[name]} {'attention' if 'attn' in name else 'mlp'}" for name in names}


def test_arguments_are_unsloths() -> None:
    parameters = inspect.signature(FastVisionModel.get_peft_model).parameters
    assert [*parameters][:11] == [
        "model",
        "r",
        "target_modules",
        "lora_alpha",
        "lora_dropout",
        "bias",
        *CHOICES,
        "layers_to_transform",
    ]
    assert all(parameters[name].default is True for name in CHOICES)
    loading = inspect.signature(FastVisionModel.from_pretrained).parameters
    assert loading["load_in_4bit"].default is True and loading["use_gradient_checkpointing"].default == "unsloth"


def test_layers_are_chosen_by_what_they_are(saved: str) -> None:
    def chosen(**options: Any) -> set[str]:
        return adapted(load(saved)[0], **options)

    everything = {"vision attention", "vision mlp", "projection mlp", "language attention", "language mlp"}
    assert chosen() == chosen(target_modules="all-linear") == everything
    assert chosen(finetune_vision_layers=False) == {"language attention", "language mlp"}
    assert chosen(finetune_language_layers=False) == {"vision attention", "vision mlp", "projection mlp"}
    assert chosen(finetune_mlp_modules=False) == {"vision attention", "language attention"}
    assert chosen(finetune_attention_modules=False) == {"vision mlp", "projection mlp", "language mlp"}
    assert chosen(target_modules=["q_proj"], finetune_vision_layers=False) == {"language attention"}
    with pytest.raises(RequestError, match="no linear layer is chosen"):
        chosen(finetune_vision_layers=False, finetune_language_layers=False)


def test_from_loading_to_training_and_back(saved: str, tmp_path: Path) -> None:
    model, processor = load(saved)
    model = FastVisionModel.get_peft_model(model, r=4)
    assert isinstance(model, PeftModel) and chosen_activations(model) == "offload"
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    FastVisionModel.for_inference(model)
    assert not model.training and processor.tokenizer.padding_side == "left"
    FastVisionModel.for_training(model)
    trainer = DPOTrainer(
        model,
        args=DPOConfig(**arguments(tmp_path, max_steps=2, gradient_accumulation_steps=1, max_length=256)),
        train_dataset=several_images(6, seed=1),
        processing_class=processor,
    )
    trainer.train()
    assert_on_step(trainer)
    assert len(losses(trainer)) == 2 and losses(trainer)[0] == pytest.approx(0.693147, abs=1e-5)
    model.save_pretrained_merged(tmp_path / "adapter", processor, save_method="lora")
    again, _ = load(str(tmp_path / "adapter"))
    learned = {n: p for n, p in model.named_parameters() if "lora_B.default" in n}
    assert learned and all(torch.equal(again.get_parameter(name), weight) for name, weight in learned.items())


def test_a_model_that_reads_images_is_loaded_for_text_with_its_tokenizer_alone(saved: str) -> None:
    model, tokenizer = FastLanguageModel.from_pretrained(saved, device_map="cpu", load_in_4bit=False)
    assert type(model).__name__ == "Idefics3ForConditionalGeneration" and not hasattr(tokenizer, "image_processor")


def test_a_model_of_text_names_its_class() -> None:
    with pytest.raises(RequestError, match=r"reads no images; .* train on text \(FastLanguageModel\)"):
        load("smollm2-135m-instruct")
