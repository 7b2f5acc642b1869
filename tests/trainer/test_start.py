"""The reference is what training started from: first losses are ln 2, and all losses those of a textbook loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.preference_runs import arguments, chat_pairs, losses
from wishbone import DPOConfig, DPOTrainer, FastLanguageModel
from wishbone.errors import RequestError

LN_2 = pytest.approx(math.log(2), abs=1e-5)
SOME = ["q_proj", "v_proj", "down_proj"]
STEPS, BETA, RATE = 3, 0.1, 1e-2


def base() -> PreTrainedModel:
    """A model with biases."""
    return tiny_model("llama", vocab_size=len(tiny_tokenizer()), attention_bias=True)


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})


def trainer(folder: Path, model: Any, peft_config: PeftConfig | None = None, **options: Any) -> DPOTrainer:
    """A trainer of three steps of all four pairs; options of DPOTrainer are the ones that DPOConfig lacks."""
    own = {name: options.pop(name) for name in ("ref_model", "eval_dataset") if name in options}
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": STEPS}
    settings |= {"max_grad_norm": 0.0, "reference_store": "off", "learning_rate": RATE, **options}
    return DPOTrainer(
        model,
        args=DPOConfig(**arguments(folder, **settings)),
        train_dataset=chat_pairs(4),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
        **own,
    )


def textbook(policy: nn.Module, rows: Any) -> list[float]:
    """DPO losses of AdamW steps over all pairs, two plain sequences a pair, the reference a copy made before."""
    reference = deepcopy(policy).eval()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    policy.eval()

    def logp(model: nn.Module, prompt: list[int], completion: list[int]) -> Tensor:
        scores = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        return torch.stack([scores[len(prompt) - 1 + i, token] for i, token in enumerate(completion)]).sum()

    def log_ratio(model: nn.Module, row: Any) -> Tensor:
        return logp(model, row["prompt_ids"], row["chosen_ids"]) - logp(model, row["prompt_ids"], row["rejected_ids"])

    with torch.no_grad():
        others = [log_ratio(reference, row) for row in rows]
    found = []
    for _ in range(STEPS):
        ratios = [BETA * (log_ratio(policy, row) - other) for row, other in zip(rows, others, strict=True)]
        loss = -F.logsigmoid(torch.stack(ratios)).mean()
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def twin(made: nn.Module, make: Callable[[], nn.Module]) -> nn.Module:
    """Another model with the parameters of `made`, as far as `make` has them."""
    own = make()
    values = dict(made.named_parameters())
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter.copy_(values[name])
    return own


KINDS: dict[str, Callable[[], PeftConfig]] = {
    "plain": lora,
    "all biases": lambda: lora(bias="all"),
    "biases of adapted layers": lambda: lora(bias="lora_only", use_dora=True),
    "pissa": lambda: lora(init_lora_weights="pissa"),
    "pissa and biases": lambda: lora(init_lora_weights="pissa", bias="all", modules_to_save=["lm_head"]),
    "ia3": lambda: peft.IA3Config(target_modules=SOME, feedforward_modules=["down_proj"]),
    "olora": lambda: lora(init_lora_weights="olora", trainable_token_indices=[4, 5]),
    "random": lambda: lora(init_lora_weights=False),
    "fourier": lambda: peft.FourierFTConfig(n_frequency=10, target_modules=SOME),
    "hra with biases": lambda: peft.HRAConfig(r=4, target_modules=SOME, bias="all"),
}
LONG = {"olora", "random", "fourier", "hra with biases"}
"""Kinds that run the code of the others."""


@pytest.mark.parametrize("state", ["new", "trained before"])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.long) if kind in LONG else kind for kind in KINDS]
)
def test_losses_are_those_of_a_copied_reference(tmp_path: Path, kind: str, state: str) -> None:
    torch.manual_seed(5)
    model, config = base(), KINDS[kind]()
    if state == "trained before":
        model, config = get_peft_model(model, config), None
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    ours = trainer(tmp_path, model, config)
    expected = textbook(twin(ours.model, lambda: get_peft_model(base(), KINDS[kind]())), ours.train_dataset)
    ours.train()
    assert ours.preference_step is not None
    assert losses(ours)[0] == LN_2
    assert losses(ours) == pytest.approx(expected, abs=2e-6)


def test_an_unfrozen_norm_beside_an_adapter_is_not_in_the_reference(tmp_path: Path) -> None:
    model = get_peft_model(base(), lora())
    model.get_base_model().model.norm.weight.requires_grad_(True)
    ours = trainer(tmp_path, model)
    learning = get_peft_model(base(), lora())
    learning.get_base_model().model.norm.weight.requires_grad_(True)
    expected = textbook(twin(ours.model, lambda: learning), ours.train_dataset)
    before = model.get_base_model().model.norm.weight.clone()
    ours.train()
    assert losses(ours) == pytest.approx(expected, abs=2e-6)
    assert not torch.equal(model.get_base_model().model.norm.weight, before)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_constructing_a_trainer_leaves_the_policy_as_it_is(tmp_path: Path, start: str) -> None:
    model = get_peft_model(base(), lora(init_lora_weights=start, bias="all")).eval()
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        trainer(tmp_path, model)
        assert torch.equal(model.eval()(input_ids=ids).logits, before)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert "add_adapter" not in vars(model)


def test_no_second_adapter_is_made_where_none_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT takes half a second for one of an 8B model, and it would be deleted again."""
    made: list[str] = []
    monkeypatch.setattr(PeftModel, "add_adapter", lambda model, name, *_, **__: made.append(name))
    empty = FastLanguageModel.get_peft_model(base(), r=4, use_gradient_checkpointing=False)
    before = {name: parameter.clone() for name, parameter in empty.named_parameters()}
    ours = trainer(tmp_path, empty)
    assert made == [] and list(empty.peft_config) == ["default"] and "get_parameter" not in vars(empty)
    assert all(torch.equal(parameter, before[name]) for name, parameter in empty.named_parameters())
    ours.train()
    assert losses(ours)[0] == LN_2
    with pytest.raises(AttributeError, match="ref"):  # of a trained adapter TRL fills the second
        trainer(tmp_path, empty)
    assert made == ["ref"]


def test_virtual_tokens_are_part_of_the_reference(tmp_path: Path) -> None:
    ours = trainer(tmp_path, base(), PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    ours.train()
    assert losses(ours)[0] == LN_2
    assert losses(ours)[-1] < losses(ours)[0]


def changed(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("form", ["shared_prefix", "own_logits"])
def test_a_model_changed_in_memory_and_a_second_trainer(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second run TRL's forward pass is on the model already; a copy of it would run the policy."""
    model = changed(base()).float()
    if form == "own_logits":
        monkeypatch.setattr(type(model), "get_output_embeddings", scaled_head(type(model)))
    for _ in range(2):
        start = deepcopy({name: value.clone() for name, value in model.state_dict().items()})
        ours = trainer(tmp_path, model, learning_rate=1e-2)
        assert ours.preference_step is not None and ours.preference_step.policy.form == form
        learning = base()
        learning.load_state_dict(start)
        expected = textbook(learning, ours.train_dataset)
        ours.train()
        assert losses(ours)[0] == LN_2
        assert losses(ours) == pytest.approx(expected, abs=2e-5)


def scaled_head(kind: type) -> Any:
    """`get_output_embeddings` that answers with another head than the model runs, so that its own logits are used."""
    real = kind.get_output_embeddings

    def other(self: Any) -> nn.Module:
        head = deepcopy(real(self))
        head.weight.data.mul_(2)
        return head

    return other


def test_a_second_trainer_on_the_model_of_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = trainer(tmp_path, get_peft_model(base(), lora(init_lora_weights=False)))
    first.train()
    with caplog.at_level(logging.WARNING, logger="wishbone"):
        second = trainer(tmp_path, first.model)
    assert "frozen adapters of an earlier trainer (ref)" in caplog.text
    second.train()
    assert losses(second)[0] == LN_2 and losses(first)[-1] != LN_2


def test_the_active_one_of_two_adapters_is_the_start(tmp_path: Path) -> None:
    model = get_peft_model(base(), lora(init_lora_weights=False))
    model.add_adapter("other", lora(r=2, init_lora_weights=False))
    model.set_adapter("other")
    ours = trainer(tmp_path, model)
    ours.train()
    assert losses(ours)[0] == LN_2
    assert losses(ours)[-1] < losses(ours)[0]


def frozen() -> PeftModel:
    model = get_peft_model(base(), lora())
    return model.requires_grad_(False)


def merged() -> PeftModel:
    model = get_peft_model(base(), lora(init_lora_weights=False))
    model.merge_adapter()
    return model


def stacked() -> PeftModel:
    model = get_peft_model(base(), lora())
    model.add_adapter("other", lora())
    model.base_model.set_adapter(["default", "other"])
    return model


def idle() -> PeftModel:
    model = get_peft_model(base(), lora())
    model.add_adapter("other", lora())
    model.set_adapter("other", inference_mode=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default." in name)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (frozen, "the adapter is frozen; load an adapter with PeftModel.from_pretrained"),
        (lambda: base().requires_grad_(False), "all weights are frozen"),
        (merged, "the adapter is merged into its base"),
        (stacked, "2 adapters are active"),
        (idle, "the active adapter 'other' is frozen"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        trainer(tmp_path, make())


def test_precomputed_values_of_an_adapter_that_changes_the_base_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="with init_lora_weights='pissa' that is not the model that training starts"):
        trainer(tmp_path, base(), lora(init_lora_weights="pissa"), precompute_ref_log_probs=True)


def test_biases_on_trls_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="beside the adapter needs Wishbone's step"):
        trainer(tmp_path, base(), lora(bias="all", lora_dropout=0.1), disable_dropout=False)


@pytest.mark.parametrize("path", ["step", "trl"])
def test_weights_that_changed_after_construction_are_refused(tmp_path: Path, path: str) -> None:
    options = {} if path == "step" else {"optim": "lomo"}
    ours = trainer(tmp_path, base(), lora(), **options)
    assert (ours.preference_step is None) is (path == "trl")
    ours.args.optim = "adamw_torch"
    with torch.no_grad():
        for name, parameter in ours.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    with pytest.raises(RequestError, match=r"before the first step policy and reference differ by .* nats a token"):
        ours.train()
    assert ours.state.global_step == 0


def test_a_reference_that_holds_what_is_trained_is_refused(tmp_path: Path) -> None:
    model = base()
    with pytest.raises(RequestError, match=r"ref_model and model share tensors that are trained .*lora_A"):
        trainer(tmp_path, peft.get_peft_model(model, lora()), ref_model=model)
    twin = base()
    twin.load_state_dict(model.state_dict(), strict=False, assign=True)
    with pytest.raises(RequestError, match="share tensors"):
        trainer(tmp_path, twin.requires_grad_(True), ref_model=model)


def test_a_reference_model_of_the_user_may_differ(tmp_path: Path) -> None:
    ours = trainer(tmp_path, base(), lora(), ref_model=changed(base()))
    ours.train()
    assert losses(ours)[0] != LN_2


def test_a_loss_without_a_reference_needs_no_second_model(tmp_path: Path) -> None:
    """The model has no name from which TRL could load one; losses are those beside a reference that was given."""
    made = trainer(tmp_path / "alone", base(), loss_type=["orpo"])
    beside = trainer(tmp_path / "beside", base(), loss_type=["orpo"], ref_model=base())
    assert made.ref_model is None and beside.ref_model is not None
    assert all(parameter.requires_grad for parameter in made.model.parameters())
    made.train()
    beside.train()
    assert losses(made) == losses(beside) and losses(made)[-1] < losses(made)[0]


def whole_run(folder: Path, model: nn.Module, config: PeftConfig | None = None) -> list[float]:
    ours = trainer(folder, model, config, save_strategy="steps", save_steps=2, max_steps=4)
    ours.train()
    return losses(ours)


def resumed_run(folder: Path, model: nn.Module, config: PeftConfig | None = None) -> list[float]:
    ours = trainer(folder, model, config, max_steps=4)
    ours.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    return losses(ours)


def test_a_resumed_run_takes_the_frozen_adapter_or_the_base(tmp_path: Path) -> None:
    model = get_peft_model(base(), lora(init_lora_weights=False))
    whole = whole_run(tmp_path, model)
    with pytest.raises(RequestError, match="model: weights"):
        resumed_run(tmp_path, base(), lora())
    for name in ("fingerprint.json", "manifest.json"):  # as version 0.1.0 and TRL write checkpoints
        (tmp_path / "checkpoint-2" / name).unlink()
    assert resumed_run(tmp_path, base(), lora()) == pytest.approx(whole, abs=1e-6)


def test_a_resumed_run_takes_the_base_where_its_run_did(tmp_path: Path) -> None:
    whole = whole_run(tmp_path, base(), lora())
    model = PeftModel.from_pretrained(base(), tmp_path / "checkpoint-2", is_trainable=True)
    for name in ("fingerprint.json", "manifest.json"):
        (tmp_path / "checkpoint-2" / name).unlink()
    assert resumed_run(tmp_path, model) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("options", [{"init_lora_weights": "pissa"}, {"bias": "all"}], ids=["pissa", "biases"])
def test_a_resumed_run_of_an_adapter_that_changes_the_base(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = whole_run(tmp_path, base(), lora(**options))
    assert resumed_run(tmp_path, base(), lora(**options)) == pytest.approx(whole, abs=1e-5)


def test_a_resumed_run_of_a_whole_model(tmp_path: Path) -> None:
    whole = whole_run(tmp_path, changed(base()))
    assert resumed_run(tmp_path, changed(base())) == pytest.approx(whole, abs=1e-6)
    with pytest.raises(RequestError, match="weights"):
        resumed_run(tmp_path, base())


def test_adapters_that_cannot_be_trained_are_refused_with_a_remedy(tmp_path: Path) -> None:
    prefix = peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    adaption = peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, task_type="CAUSAL_LM")
    poly = peft.PolyConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    refusals = ((prefix, "gradient_checkpointing=False"), (adaption, "choose another adapter"), (poly, "task_ids"))
    for config, remedy in refusals:
        with pytest.raises(RequestError, match=remedy):
            trainer(tmp_path, base(), config, gradient_checkpointing=True)


def test_an_adapter_that_splits_its_base_at_random_is_said_to_fit_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, base(), lora(init_lora_weights="pissa_niter_2"))
    assert "'pissa_niter_2' splits the weights of the base at random" in caplog.text
    assert "TRL's is the model with the adapter off" in caplog.text
