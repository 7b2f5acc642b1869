"""What goes to TRL's own path: the line that names the reason, and a run that is TRL's, number by number."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer
from transformers import OPTConfig, OPTForCausalLM
from trl.trainer.dpo_trainer import DataCollatorForPreference

from trainer.preference_runs import chat_pairs, losses
from trainer.side_by_side import CLASSES, assert_on_step, assert_same, lora, trained, trainer
from wishbone.errors import RequestError
from wishbone.policy.capability import varies_in_training
from wishbone.trainer.request import Request
from wishbone.trainer.trl_path import refuse_on_trl_path

pytestmark = pytest.mark.long

DROPOUT = "the model has dropout or other noise that disable_dropout does not turn off"

COMPILE = "torch_compile compiles the model's own forward pass"


def opt(dropout: float = 0.1) -> OPTForCausalLM:
    """A model whose dropout is a function, which TRL's disable_dropout does not find."""
    torch.manual_seed(2)
    shape = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    places = {"vocab_size": len(tiny_tokenizer()), "max_position_embeddings": 256, "num_attention_heads": 4}
    return OPTForCausalLM(OPTConfig(**shape, **places, dropout=dropout, attention_dropout=0.0))


def prompted() -> PeftModel:
    """A model with virtual tokens; of an adapter that it is given TRL too takes a copy for the reference."""
    torch.manual_seed(4)
    base = tiny_model("llama", vocab_size=len(tiny_tokenizer()))
    return get_peft_model(base, PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))


def heldout() -> dict[str, Any]:
    return {"eval_dataset": chat_pairs(4, seed=1)}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "neftune": ("NEFTune's noise depends on the padded length of a batch", {"neftune_noise_alpha": 5.0}, {}),
    "dispatch": (
        "dispatch_batches cuts batches of tensors",
        {"accelerator_config": {"dispatch_batches": True}},
        {},
    ),
    "dropout": (
        "dropout is on (disable_dropout=False)",
        {"disable_dropout": False},
        {"peft": lambda: lora(lora_dropout=0.3)},
    ),
    "functional dropout": (DROPOUT, {}, {"model": opt}),
    "activated lora": (
        "the adapter needs its own forward pass",
        {},
        {"peft": lambda: lora(alora_invocation_tokens=[0], task_type="CAUSAL_LM")},
    ),
    "adalora": (
        "the adapter needs its own forward pass",
        {},
        {"peft": lambda: AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=["q_proj"])},
    ),
    "prompt tuning": (
        "prompt-learning adapters put virtual tokens before the prompt",
        {},
        {"model": prompted, "peft": lambda: None},
    ),
    "collator": (
        "a data collator was given",
        {},
        {"further": lambda: {"data_collator": DataCollatorForPreference(pad_token_id=2, max_length=40)}},
    ),
    "metrics": (
        "compute_metrics reads logits",
        {"eval_strategy": "steps", "eval_steps": 3},
        {"further": lambda: {"compute_metrics": lambda p: {"rows": len(p.predictions)}, **heldout()}},
    ),
    "metrics by batch": (
        "compute_metrics reads logits",
        {"eval_strategy": "steps", "eval_steps": 3, "batch_eval_metrics": True, "include_for_metrics": ["loss"]},
        {"further": lambda: {"compute_metrics": lambda p, compute_result: {"rows": len(p.predictions)}, **heldout()}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_trls_path_is_taken_and_is_trls(tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str) -> None:
    reason, options, makers = CASES[case]
    with caplog.at_level(logging.WARNING, logger="wishbone"):
        theirs, ours = trained(tmp_path, options, **makers)
    assert ours.preference_step is None and ours.form_reason == reason
    assert caplog.text.count(f"This run takes TRL's own path, because {reason}.") == 1
    assert losses(ours) == losses(theirs)
    their_weights = dict(theirs.model.named_parameters())
    for name, weight in ours.model.named_parameters():
        assert torch.equal(weight, their_weights[name]), name
        assert not (weight.requires_grad and ".ref." in name), name  # TRL leaves copies of virtual tokens unfrozen
    if "metrics" in case:
        assert ours.state.log_history[-2]["eval_rows"] == theirs.state.log_history[-2]["eval_rows"] == 4


def test_a_compiled_model_is_trained_on_trls_path(tmp_path: Path) -> None:
    short = {"max_steps": 1, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 1}
    small = {"model": lambda: tiny_model("llama", vocab_size=len(tiny_tokenizer()), num_hidden_layers=1)}
    theirs = trainer("theirs", tmp_path, short, **small)
    theirs.train()
    ours = trainer("ours", tmp_path, {**short, "torch_compile": True, "torch_compile_backend": "eager"}, **small)
    ours.train()
    assert ours.form_reason == COMPILE
    assert_same(theirs, ours)


@pytest.mark.parametrize("optimizer", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_optimizers_that_step_within_the_backward_pass(tmp_path: Path, optimizer: str) -> None:
    ours = trainer("ours", tmp_path, {"optim": optimizer})  # the packages that have them are not needed to see it
    assert ours.form_reason == f"optim={optimizer} steps within the backward pass"


def test_noise_in_training_is_found_and_the_random_state_left_alone() -> None:
    before = torch.get_rng_state()
    model = opt().eval()
    torch.set_rng_state(before)
    assert varies_in_training(model) and not varies_in_training(opt(dropout=0.0).eval())
    assert not model.training


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 changes nothing"),
        ({"activation_offloading": True}, "activation_offloading changes nothing on a CPU"),
    ],
)
def test_options_without_effect_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], told: str
) -> None:
    theirs = trainer("theirs", tmp_path)
    theirs.train()
    ours = trainer("ours", tmp_path, options)
    ours.train()
    assert caplog.text.count(told) == 1
    assert_on_step(ours)
    assert_same(theirs, ours)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"use_liger_kernel": True}, ImportError),
        ({"tf32": True}, ValueError),
        ({"fsdp": True}, ValueError),
        ({"optim": "schedule_free_adamw"}, ImportError),
        ({"loss_type": "exo_pair"}, ValueError),
        ({"loss_type": "sppo_hard", "f_divergence_type": "js_divergence"}, ValueError),
        ({"loss_type": "aot", "use_weighting": True}, NotImplementedError),
        ({"eval_strategy": "steps"}, ValueError),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_trl_or_transformers_refuse_is_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    said = []
    for whose in CLASSES:
        with pytest.raises(error) as refusal:
            trainer(whose, tmp_path, options).train()
        said.append(str(refusal.value))
    assert said[0] == said[1]


def test_batches_by_length_need_lengths(tmp_path: Path) -> None:
    """Where TRL's message names no option, ours does."""
    options = {"train_sampling_strategy": "group_by_length"}
    with pytest.raises(ValueError, match="automatically infer lengths"):
        trainer("theirs", tmp_path, options).train()
    with pytest.raises(ValueError, match="add 'length' and set remove_unused_columns=False"):
        trainer("ours", tmp_path, options).train()


def test_several_reasons_are_named_together(tmp_path: Path) -> None:
    ours = trainer("ours", tmp_path, {"neftune_noise_alpha": 1.0, "torch_compile": True})
    assert ours.form_reason == f"{COMPILE} and {CASES['neftune'][0]}"
    with pytest.raises(RequestError, match=r"an adapter on the output head needs Wishbone's step.*torch_compile"):
        refuse_on_trl_path(
            Request(
                None,
                None,
                {},
                head_adapted=True,
                synchronized=False,
                adapter_is_new=False,
                ref_model=None,
                ref_model_given=False,
            ),
            ours.form_reason,
            ours.args,
        )
