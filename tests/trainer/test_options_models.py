"""What may be trained: a name, a model, adapters of every kind, with every kind of reference. TRL is the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from trainer.preference_runs import arguments, chat_pairs, losses, model_for
from trainer.side_by_side import assert_on_step, assert_same, learned, lora, trained
from wishbone import DPOConfig, DPOTrainer, FastLanguageModel

pytestmark = pytest.mark.long

FULL: dict[str, Any] = {"learning_rate": 1e-3}
SOME = ["q_proj", "v_proj", "up_proj"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model and its tokenizer on disk."""
    folder = str(tmp_path_factory.mktemp("base"))
    tokenizer = tiny_tokenizer()
    model_for(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def of_family(family: str, **fields: Any) -> Callable[[], PreTrainedModel]:
    return lambda: tiny_model(family, vocab_size=len(tiny_tokenizer()), **fields)


def adapted(**options: Any) -> Callable[[], peft.PeftModel]:
    """Makes a model with an adapter that has been trained, that is, with random weights."""

    def make() -> peft.PeftModel:
        torch.manual_seed(5)
        return get_peft_model(of_family("llama")(), lora(init_lora_weights=False, **options))

    return make


def nothing() -> None:
    return None


def test_a_directory_with_an_adapter_and_no_tokenizer(tmp_path: Path, directory: str) -> None:
    options = {"model_init_kwargs": {"dtype": "float32"}, "trust_remote_code": True}
    theirs, ours = trained(tmp_path, options, model=lambda: directory, further=lambda: {"processing_class": None})
    assert_on_step(ours)
    assert_same(theirs, ours)
    assert ours.processing_class.vocab == tiny_tokenizer().vocab


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precompute_ref_log_probs": True},
        {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 5},
        {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5},
    ],
    ids=lambda options: "-".join(options) or "default",
)
@pytest.mark.parametrize("given", ["directory", "model"])
def test_full_fine_tuning_without_a_reference_model(
    tmp_path: Path, directory: str, given: str, options: dict[str, Any]
) -> None:
    def model() -> Any:
        return directory if given == "directory" else AutoModelForCausalLM.from_pretrained(directory)

    theirs, ours = trained(tmp_path, {**FULL, **options}, model=model, peft=nothing)
    assert_on_step(ours)
    assert_same(theirs, ours)
    assert (ours.ref_model is None) == ("precompute_ref_log_probs" in options)


@pytest.mark.parametrize(
    "options", [{}, {"sync_ref_model": True, "ref_model_sync_steps": 1}, {"precompute_ref_log_probs": True}]
)
def test_full_fine_tuning_with_another_reference_model(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs, ours = trained(
        tmp_path, {**FULL, **options}, peft=nothing, further=lambda: {"ref_model": of_family("llama", seed=1)()}
    )
    assert_on_step(ours)
    assert_same(theirs, ours)
    assert losses(ours)[0] != pytest.approx(0.6931472, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"precompute_ref_log_probs": True}])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "trained before"])
def test_adapters_of_fast_language_model_are_copied_only_if_they_add_something(
    tmp_path: Path, directory: str, fresh: bool, options: dict[str, Any]
) -> None:
    def model() -> Any:
        base, _ = FastLanguageModel.from_pretrained(directory, load_in_4bit=False, dtype=torch.float32)
        made = FastLanguageModel.get_peft_model(base, r=4, target_modules=SOME, use_gradient_checkpointing=False)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name and not fresh:
                    parameter.fill_(0.02)
        return made

    theirs, ours = trained(tmp_path, options, model=model, peft=nothing)
    assert_on_step(ours)
    assert_same(theirs, ours)
    assert ("ref" in ours.model.peft_config) is not fresh
    assert losses(ours)[0] == pytest.approx(0.6931472, abs=1e-6)


def test_an_adapter_with_another_reference_model(tmp_path: Path) -> None:
    makers = {"further": lambda: {"ref_model": of_family("llama", seed=1)()}}
    assert_same(*trained(tmp_path / "made", **makers))
    assert_same(*trained(tmp_path / "given", model=adapted(), peft=nothing, **makers))


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "norm"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"trainable_token_indices": [0, 1, 5]},
        {"lora_bias": True, "layers_to_transform": [1], "target_modules": SOME},
        {"bias": "all", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 16}},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_kinds_of_lora(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs, ours = trained(tmp_path, peft=lambda: lora(**options))
    assert_on_step(ours)
    assert_same(theirs, ours)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": SOME, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=["lora", "copy"],
)
def test_embeddings_tied_to_the_head(tmp_path: Path, options: dict[str, Any]) -> None:
    tied = of_family("llama", tie_word_embeddings=True)
    theirs, ours = trained(tmp_path, model=tied, peft=lambda: lora(**options))
    assert_on_step(ours)
    assert_same(theirs, ours)


OTHER_ADAPTERS: dict[str, Callable[[], PeftConfig]] = {
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=SOME),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=SOME),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=8, target_modules=SOME),
    "norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
    "tokens": lambda: peft.TrainableTokensConfig(token_indices=[0, 1]),
}


@pytest.mark.parametrize("name", OTHER_ADAPTERS)
def test_other_adapters(tmp_path: Path, name: str) -> None:
    theirs, ours = trained(tmp_path, peft=OTHER_ADAPTERS[name])
    assert_on_step(ours)
    assert_same(theirs, ours)


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head", "norm"]}], ids=["lora", "dora", "modules"]
)
@pytest.mark.parametrize("precompute", [False, True])
def test_an_existing_adapter(tmp_path: Path, options: dict[str, Any], precompute: bool) -> None:
    settings = {"precompute_ref_log_probs": precompute}
    theirs, ours = trained(tmp_path, settings, model=adapted(**options), peft=nothing)
    assert_on_step(ours)
    assert_same(theirs, ours)
    assert losses(ours)[0] == pytest.approx(0.6931472, abs=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_mixture_of_experts_without_its_auxiliary_loss(tmp_path: Path, family: str) -> None:
    options = {"router_aux_loss_coef": 0.0}
    theirs, ours = trained(tmp_path, options, model=of_family(family), peft=lambda: lora(target_modules=["q_proj"]))
    assert_on_step(ours)
    assert_same(theirs, ours)


def test_lora_on_the_matrices_of_experts(tmp_path: Path) -> None:
    on_experts = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    theirs, ours = trained(
        tmp_path, {"router_aux_loss_coef": 0.0}, model=of_family("qwen3_moe"), peft=lambda: lora(**on_experts)
    )
    assert_on_step(ours)
    assert_same(theirs, ours)


def refused(tmp_path: Path, model: Any, **further: Any) -> str:
    """What DPOTrainer says when it refuses."""
    options = {"args": DPOConfig(**arguments(tmp_path)), "train_dataset": chat_pairs(8), **further}
    with pytest.raises(ValueError) as refusal:
        DPOTrainer(model, **{"processing_class": tiny_tokenizer(), **options})
    return str(refusal.value)


def test_a_reference_that_is_the_model(tmp_path: Path) -> None:
    model = of_family("llama")()
    assert "omit `ref_model`" in refused(tmp_path, model, ref_model=model)


def test_two_adapters(tmp_path: Path) -> None:
    assert "merge and unload the existing adapter" in refused(tmp_path, adapted()(), peft_config=lora())


def test_an_adapter_of_another_name(tmp_path: Path) -> None:
    model = get_peft_model(of_family("llama")(), lora(), adapter_name="mine")
    message = refused(tmp_path, model)
    assert "mine" in message and "adapter_name='default'" in message


def test_a_coefficient_of_an_auxiliary_loss_that_is_not_there(tmp_path: Path) -> None:
    config = DPOConfig(**arguments(tmp_path, router_aux_loss_coef=0.1))
    assert "not a Mixture-of-Experts model" in refused(tmp_path, of_family("llama")(), args=config)


class TestFourBits:
    """bitsandbytes NF4 on the CPU. TRL makes adapters of quantized models bfloat16; losses agree to its rounding."""

    @staticmethod
    def quantization(bits: int = 4) -> transformers.BitsAndBytesConfig:
        if bits == 8:
            return transformers.BitsAndBytesConfig(load_in_8bit=True)
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )

    @pytest.fixture(autouse=True)
    def bitsandbytes(self) -> None:
        pytest.importorskip("bitsandbytes")

    @pytest.mark.parametrize("bits", [4, 8])
    def test_a_name_with_quantization_config(self, tmp_path: Path, directory: str, bits: int) -> None:
        options = {"model_init_kwargs": {"dtype": "float32"}}
        theirs, ours = trained(
            tmp_path,
            options,
            model=lambda: directory,
            further=lambda: {"quantization_config": self.quantization(bits)},
        )
        if bits == 4:
            assert_on_step(ours)
        else:  # LLM.int8 rounds float32 to float16, so tokens depend on what else is in a batch: said, in plain rows
            assert ours.preference_step is not None and "depend on tokens or padding" in ours.form_reason
        assert_same(theirs, ours, rel=3e-3, weights=3e-2)
        assert learned(ours).abs().sum() > 0

    def test_full_fine_tuning_is_refused(self, tmp_path: Path, directory: str) -> None:
        message = refused(tmp_path, directory, quantization_config=self.quantization())
        assert "attach trainable adapters" in message

    def test_a_model_that_is_loaded_already(self, tmp_path: Path) -> None:
        model = of_family("llama")()
        message = refused(tmp_path, model, quantization_config=self.quantization(), peft_config=lora())
        assert "pass the model as a model identifier" in message


def test_lora_on_the_head_of_a_name_is_refused_before_it_is_loaded(tmp_path: Path, directory: str) -> None:
    message = refused(tmp_path, directory, peft_config=LoraConfig(r=4, target_modules=["lm_head"]))
    assert "give the trainer the model itself" in message
