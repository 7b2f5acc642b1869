"""Policy and reference in one pass: the same loss and gradients as two passes, and in FP8 far truer rewards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import PeftModel
from tiny import loaded_in_fp8, tiny_model, tiny_pairs
from torch import Tensor, nn

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import EVERYTHING, NOTHING, Execution, Room
from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.fused.lockstep import Lockstep
from wishbone.model.adapter import add_adapter
from wishbone.model.eight_bit_linear import inputs_not_rounded
from wishbone.policy.activations import allow_recompute
from wishbone.policy.capability import choose_form
from wishbone.policy.policy import Policy
from wishbone.preference.load_balancing import LoadBalancing
from wishbone.preference.losses import LOSSES
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.preference.scores import LossParameters
from wishbone.reference.lockstep import why_apart
from wishbone.reference.reference import AdapterDisabled
from wishbone.reference.synchronized import SynchronizedAdapter

FAMILIES = ("llama", "qwen3", "gemma2", "gemma3_text", "phi3", "cohere", "granite", "mixtral", "qwen3_moe", "gpt_neox")
PAIRS = [TokenizedPair(p + c, p + r, len(p), len(p)) for p, c, r in tiny_pairs(5)]


def adapted(family: str, dtype: torch.dtype = torch.float64, scale: float = 0.05, **sizes: Any) -> PeftModel:
    """A model with an adapter that is no longer fresh."""
    return trained(add_adapter(tiny_model(family, dtype, **sizes), rank=4, seed=0), scale)


def trained(model: PeftModel, scale: float) -> PeftModel:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data = scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    allow_recompute(model.get_base_model())
    return model.train()


def policy_of(model: PeftModel, **options: Any) -> Policy:
    """A policy, by default in the form that the trial finds for FAMILIES (`test_model_families.py`)."""
    return Policy(model, fused=FusedLayers(model, norms_everywhere=True), **options)


def step_of(policy: Policy, reference: AdapterDisabled, losses: Sequence[Any] = ("sigmoid",)) -> PreferenceStep:
    parameters = LossParameters(beta=0.1, label_smoothing=0.1 if "exo_pair" in losses else 0.0)
    return PreferenceStep(policy, reference, Objective(tuple(losses), (1.0,) * len(losses), parameters))


def gradients(step: PreferenceStep, execution: Execution, groups: int = 1) -> list[Tensor]:
    """The loss, its gradients and the logged values of a step."""
    model, metrics = step.policy.model, PairMetrics(beta=0.1)
    model.zero_grad()
    share = [PAIRS[i::groups] for i in range(groups)]
    loss = step.backward(share, metrics, execution)
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert found
    return [loss, *found]


def both_ways(
    policy: Policy, reference: AdapterDisabled, measure: Callable[[], list[Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """What is measured with two passes, and with one."""
    assert why_apart(policy, reference) is None
    reference.in_lockstep = False
    apart = measure()
    reference.in_lockstep = True
    return apart, measure()


def assert_close(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.slow
@pytest.mark.parametrize("execution", [Execution(64, EVERYTHING), Execution(10**6, NOTHING, tile_tokens=16)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_gives_the_loss_and_gradients_of_two(family: str, execution: Execution) -> None:
    policy = policy_of(adapted(family))
    reference = AdapterDisabled(policy)
    apart, beside = both_ways(policy, reference, lambda: gradients(step_of(policy, reference), execution))
    assert_close(beside, apart, 1e-12)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.slow
def test_a_model_that_scales_only_embeddings_of_its_own(dtype: torch.dtype, hooked: bool) -> None:
    """Published Falcon-H1 models do, by 5.7."""
    policy = policy_of(adapted("falcon_h1", dtype, embedding_multiplier=5.0, num_hidden_layers=1))
    reference = AdapterDisabled(policy)
    assert policy.carry == (dtype == torch.bfloat16)
    if hooked:
        policy.model.enable_input_require_grads()
    apart, beside = both_ways(policy, reference, lambda: gradients(step_of(policy, reference), Execution(64)))
    assert "forward" not in vars(policy.causal_lm.get_input_embeddings())
    assert_close(beside, apart, 0.1 if policy.carry else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("room", [EVERYTHING, NOTHING, Room(total=3e6, base=1e4, layer=1e4)])
def test_other_dtypes_and_rooms(dtype: torch.dtype, room: Room) -> None:
    policy = policy_of(adapted("llama", dtype), carry=False)
    reference = AdapterDisabled(policy)
    apart, beside = both_ways(policy, reference, lambda: gradients(step_of(policy, reference), Execution(64, room)))
    assert all(map(torch.equal, beside, apart)), "nothing is rounded otherwise"


@pytest.mark.slow
@pytest.mark.parametrize("losses", [[name] for name in LOSSES] + [["sigmoid", "sft"]], ids=str)
def test_every_loss_also_those_that_couple_pairs(losses: list[Any]) -> None:
    policy = policy_of(adapted("llama"))
    reference = AdapterDisabled(policy)
    step = step_of(policy, reference, losses)
    apart, beside = both_ways(policy, reference, lambda: gradients(step, Execution(64, EVERYTHING), groups=2))
    assert_close(beside, apart, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("room", [EVERYTHING, NOTHING])
def test_a_mixture_has_its_auxiliary_loss_from_the_policys_routers(room: Room) -> None:
    model = adapted("qwen3_moe")
    policy = policy_of(model)
    reference = AdapterDisabled(policy)
    term = LoadBalancing(0.5, model.config.num_experts_per_tok)
    step = PreferenceStep(policy, reference, Objective(load_balancing=term))
    apart, beside = both_ways(policy, reference, lambda: gradients(step, Execution(10**6, room)))
    assert_close(beside, apart, 1e-12)


def test_a_reentrant_checkpoint_recomputes_layers() -> None:
    model = adapted("llama")
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    policy = policy_of(model)
    reference = AdapterDisabled(policy)
    for execution in (Execution(64), Execution(64, NOTHING)):
        apart, beside = both_ways(policy, reference, lambda: gradients(step_of(policy, reference), execution))  # noqa: B023
        assert_close(beside, apart, 1e-12)


def test_evaluation_and_scores() -> None:
    policy = policy_of(adapted("llama"))
    reference = AdapterDisabled(policy)
    step, execution = step_of(policy, reference), Execution(64)

    def values() -> list[Tensor]:
        scores, ref_logps = step.score(PAIRS, execution)
        return [scores.logps, ref_logps, step.evaluate(PAIRS, PairMetrics(beta=0.1), execution)]

    assert_close(*reversed(both_ways(policy, reference, values)), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("moves", [False, True])
def test_the_reference_may_have_frozen_adapters_of_its_own(moves: bool) -> None:
    model = adapted("llama")
    if moves:
        policy = policy_of(model)
        reference: AdapterDisabled = SynchronizedAdapter(policy)
        reference.synchronize(0.6)  # type: ignore[attr-defined]
    else:
        model.add_adapter("ref", copy.deepcopy(model.peft_config["default"]))
        model.set_adapter("default")
        for name, parameter in model.named_parameters():
            if ".ref." in name:
                parameter.data.normal_(std=0.05)
                parameter.requires_grad_(False)
        policy = policy_of(model.double())
        reference = AdapterDisabled(policy, "ref")
    base = AdapterDisabled(policy).logps(policy.collate(PAIRS))
    assert not torch.allclose(reference.logps(policy.collate(PAIRS)), base)
    apart, beside = both_ways(
        policy, reference, lambda: gradients(step_of(policy, reference), Execution(64, EVERYTHING))
    )
    assert_close(beside, apart, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dropout", "dora", "embedding", "head"])
def test_adapters_without_a_fused_form_run_once_for_policy_and_once_for_reference(what: str) -> None:
    options: dict[str, Any] = {
        "dora": {"use_dora": True},
        "embedding": {"target_modules": ["embed_tokens", "q_proj", "down_proj"]},
        "head": {"target_modules": ["lm_head", "v_proj"]},
    }.get(what, {})
    from peft import LoraConfig, get_peft_model

    targets = options.pop("target_modules", ["q_proj", "v_proj", "down_proj"])
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_model("llama", torch.float64), LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **options)
    )
    model = trained(model.double(), 0.05)
    for name, parameter in model.named_parameters():
        if "lora_embedding_A" in name:
            parameter.data.normal_(std=0.05)
    policy = policy_of(model)
    if what == "dropout":
        for module in model.modules():
            if isinstance(module, nn.ModuleDict) and "default" in module and isinstance(module["default"], nn.Identity):
                module["default"] = nn.Dropout(0.5)
    reference = AdapterDisabled(policy)
    assert why_apart(policy, reference) is None
    measured = []
    for reference.in_lockstep in (False, True):
        torch.manual_seed(0)
        measured.append(gradients(step_of(policy, reference), Execution(10**6, EVERYTHING)))
    assert_close(measured[1], measured[0], 1e-12)


def in_fp8(scale: float) -> PeftModel:
    base = loaded_in_fp8(tiny_model("llama", hidden_size=128, intermediate_size=256, num_hidden_layers=4))
    return trained(add_adapter(base, rank=4, seed=0), scale)


def in_nf4(model: Any) -> Any:
    """The model with its layers in NF4."""
    bnb = pytest.importorskip("bitsandbytes")
    options = {"quant_type": "nf4", "compress_statistics": True}
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in [*part.named_children()]:
                if isinstance(linear, nn.Linear):
                    four = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, **options)
                    four.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, **options).to("cpu")
                    four.support_avx512bf16_for_cpu = False
                    setattr(part, name, four)
    return model


def fp8_policy(model: PeftModel, dtype: torch.dtype, fused: bool = True) -> Policy:
    return Policy(
        model,
        fused=FusedLayers(model, norms_everywhere=True) if fused else None,
        autocast=lambda: torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16),
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.002, 0.02])
def test_in_fp8_the_error_of_a_reward_is_a_share_of_the_reward(scale: float, dtype: torch.dtype) -> None:
    """The judge has the same weights and rounds no input."""
    model = in_fp8(scale)
    with inputs_not_rounded(model):
        exact = fp8_policy(model, torch.float32, fused=False)
        judge = step_of(exact, AdapterDisabled(exact)).score(PAIRS, Execution(64))
    policy = fp8_policy(model, dtype)
    reference = AdapterDisabled(policy)
    assert why_apart(policy, reference) is None
    errors = []
    for reference.in_lockstep in (False, True):
        scores, ref_logps = step_of(policy, reference).score(PAIRS, Execution(64))
        errors.append(((scores.logps - ref_logps) - (judge[0].logps - judge[1])).abs().mean())
    assert errors[1] < errors[0] / (20 if dtype == torch.float32 and scale < 0.01 else 3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("room", [EVERYTHING, NOTHING])
def test_in_fp8_a_fresh_adapter_has_rewards_of_zero_and_known_gradients(dtype: torch.dtype, room: Room) -> None:
    model = in_fp8(0.0)
    policy = fp8_policy(model, dtype)
    reference = AdapterDisabled(policy)
    apart, beside = both_ways(policy, reference, lambda: gradients(step_of(policy, reference), Execution(64, room)))
    assert float(beside[0]) == pytest.approx(0.6931471805599453, abs=1e-7)
    assert all(map(torch.equal, beside, apart)), "without a difference both are the same arithmetic"


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["o_proj"], ["down_proj"]], ids=str)
@pytest.mark.parametrize("form", ["nf4", "fp8"])
@pytest.mark.slow
def test_adapters_on_some_layers_of_a_quantized_model_are_trained(form: str, targets: list[str]) -> None:
    base = tiny_model("llama") if form == "nf4" else loaded_in_fp8(tiny_model("llama"))
    model = trained(add_adapter(in_nf4(base) if form == "nf4" else base, rank=4, target_modules=targets), 0.0)
    policy = fp8_policy(model, torch.float32)
    reference = AdapterDisabled(policy)
    apart, beside = both_ways(policy, reference, lambda: gradients(step_of(policy, reference), Execution(64)))
    assert len(beside) == 1 + sum(parameter.requires_grad for parameter in model.parameters())
    assert_close(beside, apart, 1e-6)


def test_a_function_with_a_backward_pass_of_its_own_runs_apart() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return 2 * gradient

    model = adapted("llama", torch.float32)
    mlp = model.get_base_model().model.layers[1].mlp
    mlp.forward = lambda x, own=mlp.forward: own(Doubled.apply(x))
    policy = policy_of(model)
    reason = why_apart(policy, AdapterDisabled(policy))
    assert reason is not None and "a backward pass of its own does not run on policy and reference" in reason


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.002, 0.02])
def test_in_fp8_gradients_of_one_pass_are_about_as_close_to_float64s_as_those_of_two(scale: float) -> None:
    """The judge has the same weights in float64 and rounds neither inputs nor gradients.

    Both passes round the reference's input, which is most of the error; a tiny model has little to average it over.
    """
    model = in_fp8(scale)
    exact_model = copy.deepcopy(model).double()
    with inputs_not_rounded(exact_model):
        exact = fp8_policy(exact_model, torch.float64, fused=False)
        wanted = torch.cat(
            [one.flatten() for one in gradients(step_of(exact, AdapterDisabled(exact)), Execution(64))[1:]]
        )
    policy = fp8_policy(model, torch.float32)
    reference = AdapterDisabled(policy)
    errors = []
    for reference.in_lockstep in (False, True):
        found = gradients(step_of(policy, reference), Execution(64))[1:]
        errors.append(float((torch.cat([one.flatten() for one in found]) - wanted).norm() / wanted.norm()))
    assert errors[1] <= 1.25 * errors[0] and errors[1] < 0.5, errors


def test_in_fp8_gradients_of_recomputed_layers_agree_to_eight_bits() -> None:
    model = in_fp8(0.02)
    policy = fp8_policy(model, torch.float32)
    reference = AdapterDisabled(policy)
    reference.in_lockstep = True
    kept, recomputed = (gradients(step_of(policy, reference), Execution(64, room)) for room in (EVERYTHING, NOTHING))
    assert torch.equal(kept[0], recomputed[0]), "the loss is that of the forward pass"
    flat = [torch.cat([one.flatten() for one in found[1:]]) for found in (kept, recomputed)]
    assert (flat[0] - flat[1]).norm() < 0.2 * flat[0].norm()


def test_nothing_of_the_reference_is_kept_for_the_backward_pass() -> None:
    policy = policy_of(adapted("llama", torch.float32))
    reference = AdapterDisabled(policy)
    kept: list[int] = []
    for reference.in_lockstep in (False, True):
        seen: dict[int, int] = {}

        def note(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            assert not isinstance(tensor, Lockstep)
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            gradients(step_of(policy, reference), Execution(10**6, EVERYTHING))
        kept.append(sum(seen.values()))
    assert kept[1] <= kept[0]


@pytest.mark.parametrize("hook", [True, False])
def test_a_layer_whose_forward_is_replaced_never_runs_the_reference_with_the_policys_adapter(hook: bool) -> None:
    model = adapted("llama")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    if hook:
        add_hook_to_module(layer, ModelHook())
    else:
        own = layer.forward
        layer.forward = lambda x: own(x)
    policy = policy_of(model)
    reference = AdapterDisabled(policy)
    if hook:
        apart, beside = both_ways(policy, reference, lambda: gradients(step_of(policy, reference), Execution(64)))
        assert_close(beside, apart, 1e-12)
    else:
        assert "something else has replaced the forward" in str(why_apart(policy, reference))


class _LooksAtValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else x + 0


@pytest.mark.parametrize("reason", ["values", "form", "unfused", "hooks"])
def test_what_cannot_run_in_one_pass_is_said(reason: str) -> None:
    model = adapted("llama4_text" if reason == "form" else "llama", torch.float32)
    if reason == "values":
        layer = model.get_base_model().model.layers[-1]
        own, look = layer.forward, _LooksAtValues()
        layer.forward = lambda x, *args, **kwargs: own(look(x), *args, **kwargs)
    if reason == "hooks":
        model.get_base_model().model.layers[0].register_full_backward_hook(lambda *_: None)
    policy = Policy(model) if reason == "unfused" else policy_of(model, form=choose_form(model).form)
    found = why_apart(policy, AdapterDisabled(policy))
    expected = {
        "values": "looks at values",
        "form": "shared prefix",
        "unfused": "do not run fused",
        "hooks": "backward hooks",
    }[reason]
    assert found is not None and expected in found


def test_functions_run_on_policy_and_reference_and_only_the_policys_has_a_graph() -> None:
    policy, reference = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3)
    both = Lockstep(policy, reference, ())
    assert both.shape == (2, 3) and both.dtype == torch.float32 and both.requires_grad
    values, index = (both * 2 + torch.ones(3)).split(1)[0].max(-1)
    assert isinstance(values, Lockstep) and isinstance(index, Lockstep)
    assert values.policy.requires_grad and not values.reference.requires_grad
    assert values.policy.tolist() == [3.0] and values.reference.tolist() == [1.0]
    with pytest.raises(NotImplementedError, match="looks at values"):
        float(both.sum())
    assert isinstance(torch.cat([both, both]), Lockstep)
