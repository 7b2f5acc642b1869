"""The plan of a run: the choices that training makes, and what is offered where a run does not fit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wishbone.config.schema import RunConfig
from wishbone.engine import profiling
from wishbone.engine.execution import Execution, Room
from wishbone.engine.probe import RowProbe, Timing
from wishbone.errors import RequestError
from wishbone.planning import run_plan
from wishbone.planning.alternatives import alternatives
from wishbone.planning.gpus import find_gpu
from wishbone.planning.known_models import known_shapes
from wishbone.planning.lengths import PairLengths, given_lengths
from wishbone.planning.memory import CONTEXT, GIB, NF4_BYTES, MemoryPlan, estimate_memory, trained_parameters
from wishbone.planning.room import Machine, choose_rows
from wishbone.planning.run_plan import RunPlan, Target, gpu_machine, memory_plan, plan_run
from wishbone.preference import losses

LLAMA = known_shapes()["meta-llama/Llama-3.1-8B-Instruct"]
PAIRS = given_lengths(500, 128, 256, 1024)


def config(**settings: Any) -> RunConfig:
    values: dict[str, Any] = {"model": {"name": "m"}, "data": {"train": "d"}}
    for name, value in settings.items():
        section, _, key = name.partition("__")
        values.setdefault(section, {})[key] = value
    return RunConfig.model_validate(values)


def target(gpu: str | None, shape: str | None = None, pairs: PairLengths = PAIRS) -> Target:
    chosen = LLAMA if shape is None else known_shapes()[shape]
    if gpu is None:
        return Target(chosen, pairs, Machine("cpu", 64 * GIB, 60 * GIB), None)
    return Target(chosen, pairs, gpu_machine(find_gpu(gpu)), find_gpu(gpu))


def test_what_is_said_of_training_is_what_training_does():
    assert run_plan.REFERENCE_FREE == losses.REFERENCE_FREE


@pytest.mark.parametrize("asked", ["auto", 4096])
@pytest.mark.parametrize("treatment", ["auto", "keep", "recompute", "offload"])
@pytest.mark.parametrize("memory", [14, 17, 18, 20, 24, 32, 48, 80, 140])
def test_profiling_chooses_the_same_from_the_same_memory(memory: int, treatment: Any, asked: int | str):
    """A GPU that takes what is estimated; rows that could be timed are not."""
    plan = MemoryPlan("bf16", row_tokens=0, device_memory=memory * GIB)
    machine = Machine("cuda", memory * GIB, memory * GIB)

    class Card(RowProbe):
        def __init__(self) -> None:
            policy: Any = SimpleNamespace(layers=[None] * LLAMA.layers)
            self.policy = policy

        def peak(self, tokens: int, execution: Execution) -> float | None:
            assert execution.room is not None
            kept, offload = execution.room.kept(tokens, LLAMA.layers), execution.offload == "always"
            own = replace(plan, row_tokens=tokens, kept_layers=kept, offload=offload, pieces=execution.in_pieces)
            row = estimate_memory(LLAMA, own)
            return row.allocated if row.total <= machine.limit else None

        def timing(self, tokens: int, execution: Execution) -> Timing:
            return Timing(1.0, 0.0)  # a row takes as long whatever its length: longer ones are faster

    budget = 8192 if asked == "auto" else asked
    start = Execution.treating(budget, treatment)
    if treatment == "auto":
        start = Execution(budget, Room(1.0, 1.0, 1.0), offload="as needed")
    pairs = np.full(64, 1500)
    usable = machine.limit - CONTEXT
    chosen = profiling.fitted(Card(), start, lambda: usable, pairs, 64, budget_fixed=asked != "auto")
    found = choose_rows(LLAMA, plan, machine, asked, treatment, 1500, 64 * 1500)
    assert found.execution == chosen
    assert found.largest == found.budget
    assert (found.memory.total <= machine.limit) is (Card().peak(found.largest, chosen) is not None)


def test_no_memory_is_held_for_rows_that_no_step_has():
    plan = MemoryPlan("nf4", row_tokens=0)
    machine = Machine("cuda", 12 * GIB, 12 * GIB)
    few, many = (choose_rows(LLAMA, plan, machine, "auto", "auto", 300, most) for most in (2400, 10**6))
    assert few.budget == few.largest == 2400 < many.largest
    assert few.kept_layers > many.kept_layers
    fixed = choose_rows(LLAMA, plan, machine, 8192, "auto", 300, 2400)
    assert (fixed.budget, fixed.largest) == (8192, 2400)


@pytest.mark.parametrize("gpu", ["RTX 3090", "RTX 5090", "L40S", "A100 80GB", "H200"])
def test_more_memory_keeps_more_and_the_rows_fit(gpu: str):
    found = plan_run(config(), target(gpu))
    assert found.fits
    assert found.rows.memory.total <= 0.96 * find_gpu(gpu).memory_gib * GIB
    larger = plan_run(config(), target("B200"))
    assert larger.rows.budget >= found.rows.budget
    assert larger.longest_sequence >= found.longest_sequence


def test_the_longest_sequence_fits_and_a_longer_one_does_not():
    qwen = replace(known_shapes()["Qwen/Qwen2.5-7B-Instruct"], positions=0)
    at_hand = Target(qwen, PAIRS, gpu_machine(find_gpu("RTX 4090")), find_gpu("RTX 4090"))
    longest = plan_run(config(), at_hand).longest_sequence
    for factor, fits in ((0.99, True), (1.02, False)):
        share = 256 / (128 + 256)
        completion = round(factor * longest * share)
        one = np.array([completion])
        pair = PairLengths(np.array([round(factor * longest) - completion]), one, one, "as given")
        plan = plan_run(config(data__max_length=None), replace(at_hand, lengths=pair))
        assert plan.fits is fits


def test_rows_are_packed_as_training_packs_them():
    lengths = PairLengths(*(np.full(64, tokens) for tokens in (100, 300, 300)), "as given")
    found = plan_run(config(training__token_budget=1500, training__activations="keep"), target("H200", pairs=lengths))
    assert (found.rows_a_step, found.row_tokens, found.step_tokens) == (4.0, 1400.0, 5600.0)
    assert (found.schedule.steps, found.longest) == (8, 700)


def test_on_a_processor_no_row_has_more_than_the_pairs_of_a_step():
    found = plan_run(config(training__gradient_accumulation=1), target(None, "HuggingFaceTB/SmolLM2-135M-Instruct"))
    assert found.fits
    assert found.rows.largest == found.longest
    assert found.rows.budget == 1024
    assert found.seconds is None


def test_a_reference_of_another_shape_takes_its_own_memory():
    alone = plan_run(config(), target("H200"))
    qwen = known_shapes()["Qwen/Qwen2.5-1.5B-Instruct"]
    beside = plan_run(config(model__reference="other"), replace(target("H200"), reference=qwen))
    assert alone.rows.memory.items["reference"] == 0
    assert beside.rows.memory.items["reference"] == 2 * qwen.parameters


MISFITS = {
    "every weight": (config(adapter__method="full"), "RTX 4090", None),
    "rows too long": (config(training__activations="keep", training__token_budget=8192), "RTX 3090", None),
    "bfloat16 on a small card": (config(), "RTX 4080", None),
    "much too large": (config(), "RTX 4090", "Qwen/Qwen2.5-72B-Instruct"),
    "every weight of that": (config(adapter__method="full"), "RTX 4090", "Qwen/Qwen2.5-72B-Instruct"),
}


def replanned(run: RunConfig, at_hand: Target, settings: tuple[str, ...], gpu: str | None) -> RunPlan:
    values = run.model_dump()
    for setting in settings:
        name, _, value = setting.partition("=")
        section, _, key = name.partition(".")
        values[section][key] = int(value) if value.isdecimal() else value
    if gpu is not None:
        at_hand = replace(at_hand, gpu=find_gpu(gpu), machine=gpu_machine(find_gpu(gpu)))
    return plan_run(RunConfig.model_validate(values), at_hand)


@pytest.mark.parametrize("case", MISFITS)
def test_what_is_offered_instead_fits(case: str):
    run, gpu, shape = MISFITS[case]
    at_hand = target(gpu, shape)
    assert not plan_run(run, at_hand).fits
    offers = list(alternatives(run, at_hand))
    assert offers
    for offer in offers:
        again = replanned(run, at_hand, offer.settings, offer.gpu)
        assert again.fits
        assert again.rows.memory.total == offer.memory


@pytest.mark.parametrize("gpu", ["RTX 3090", None])
def test_fp8_is_refused_where_there_is_no_arithmetic_for_it(gpu: str | None):
    with pytest.raises(RequestError, match=r"fp8 needs a GPU of compute capability 8\.9"):
        plan_run(config(model__quantization="fp8"), target(gpu))


def test_int8_is_refused_before_turing_and_planned_from_it_on():
    with pytest.raises(RequestError, match=r"int8 needs a GPU of compute capability 7\.5"):
        plan_run(config(model__quantization="int8"), target("V100 16GB"))
    for gpu in ("T4", "RTX 3090", None):
        assert plan_run(config(model__quantization="int8"), target(gpu)).weights == "int8"


@pytest.mark.parametrize(("gpu", "weights"), [("T4", "f16"), ("RTX 3090", "bf16"), (None, "f32")])
def test_weights_are_in_the_form_that_the_device_computes_in(gpu: str | None, weights: str):
    found = plan_run(config(), target(gpu, "HuggingFaceTB/SmolLM2-135M-Instruct"))
    assert found.weights == weights


def test_a_stored_reference_costs_one_epoch_alone():
    once = plan_run(config(), target("H200")).seconds
    later = plan_run(config(training__epochs=4.0), target("H200")).seconds
    free = plan_run(config(preference__loss=["simpo"]), target("H200")).seconds
    assert once is not None and later is not None and free is not None
    assert later == pytest.approx(once * 2.25 / 3, rel=0.01)
    assert free == pytest.approx(once * 2 / 3, rel=0.01)


def test_several_gpus_share_the_pairs_of_a_step():
    asked = config(training__batch_size=8, training__gradient_accumulation=4)
    run = target("H100", pairs=given_lengths(4000, 128, 256, 1024))
    one, four = plan_run(asked, run), plan_run(asked, run, processes=4)
    assert (four.schedule, four.pairs) == (one.schedule, one.pairs)
    assert 0.25 <= four.step_tokens / one.step_tokens <= 0.3  # of the GPU with the most
    trained = trained_parameters(LLAMA, memory_plan(asked, run))
    assert (one.exchanged, four.exchanged) == (0, 2 * 3 / 4 * 4 * trained)


LARGE = "meta-llama/Llama-3.1-70B-Instruct"


def test_a_model_that_one_gpu_does_not_hold_is_divided():
    run = target("H200", LARGE)
    one, two = (plan_run(config(), run, processes=processes) for processes in (1, 2))
    assert (one.fits, one.sharded, one.gathered) == (False, False, 0)
    assert two.fits and two.sharded
    frozen = 2 * run.shape.parameters
    assert two.gathered == pytest.approx(2 * frozen / 2)
    at_rest = two.rows.memory.items["weights"] + two.rows.memory.items["embeddings and head"]
    assert at_rest == pytest.approx(frozen / 2)
    two_layers = 2 * (frozen - 2 * run.shape.embedding_parameters) / run.shape.layers
    assert two.rows.memory.items["workspace"] >= two_layers + 2 * run.shape.embedding_parameters


def test_what_fits_is_not_divided_unless_asked_and_never_where_that_is_refused():
    small, large = target("H200"), target("H200", LARGE)
    assert not plan_run(config(), small, processes=2).sharded
    asked = plan_run(config(model__sharding="fsdp"), small, processes=2)
    whole = plan_run(config(), small, processes=2)
    assert asked.sharded and asked.rows.memory.items["weights"] == whole.rows.memory.items["weights"] / 2
    assert not plan_run(config(model__sharding="none"), large, processes=2).sharded
    assert not plan_run(config(model__sharding="fsdp"), large, processes=1).sharded
    assert not plan_run(config(), target(None, LARGE), processes=2).sharded


def test_all_weights_of_a_divided_model_rest_in_float32():
    run = target("H200", LARGE)
    plan = plan_run(config(adapter__method="full"), run, processes=16)
    items, weights = plan.rows.memory.items, run.shape.parameters
    assert plan.sharded
    assert items["weights"] + items["embeddings and head"] == pytest.approx(4 * weights / 16)
    assert (items["gradients"], items["optimizer"]) == pytest.approx((4 * weights / 16, 8 * weights / 16))


def test_codes_are_divided_but_for_what_bitsandbytes_keeps_beside_them():
    run = target("H200", LARGE)
    memory = {n: plan_run(config(model__quantization="nf4", model__sharding="fsdp"), run, processes=n) for n in (2, 4)}
    two, four = (memory[n].rows.memory.items["weights"] for n in (2, 4))
    beside = NF4_BYTES - 1 / 2
    assert two - four == pytest.approx(
        (run.shape.linear_parameters / 2 + 2 * run.shape.vector_parameters) / 4, rel=1e-3
    )
    assert four > run.shape.linear_parameters * (1 / 2 / 4 + beside)
