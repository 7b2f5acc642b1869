"""Which lengths of rows are recorded, what they are padded to, and what of a recorded row is written over."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_pairs

from wishbone.data.batch import truncated_pair
from wishbone.engine import graph_selection
from wishbone.engine.execution import EVERYTHING, Execution, PaddedTo, Room
from wishbone.engine.graph_selection import (
    HELD_ROWS,
    RECORDED,
    Lengths,
    RowTimes,
    beside_another,
    lengths_by_count,
    passes_to_come,
    with_cuda_graphs,
    worthwhile,
)
from wishbone.engine.probe import RowProbe, Timing
from wishbone.engine.row_lengths import likely_rows, most_pairs_in_a_row
from wishbone.engine.step import PreferenceStep
from wishbone.fused.layers import FusedLayers
from wishbone.fused.parts import text_layers
from wishbone.model.adapter import add_adapter
from wishbone.ops.chunked_scan.segments import segments_of
from wishbone.ops.prefix_attention import Document, PrefixLayout, prefix_attention
from wishbone.ops.prefix_attention.tables import BlockKind, block_tables, overwrite_tables, tables_hold
from wishbone.ops.prefix_chunks import prefix_chunks
from wishbone.ops.prefix_convolution.neighbours import neighbours_of
from wishbone.policy.cuda_graphs import padded_length
from wishbone.policy.model_state import ModelState
from wishbone.policy.policy import Policy
from wishbone.preference.objective import Objective
from wishbone.reference.cache import CachedReference
from wishbone.reference.identity import reference_identity
from wishbone.reference.reference import AdapterDisabled, NoReference
from wishbone.reference.store import ReferenceStore


def test_rows_of_steps_to_come_are_those_that_packing_makes() -> None:
    tokens = np.array([100] * 50)
    rows = likely_rows(tokens, pairs_a_step=8, budget=450)
    assert set(rows.tolist()) == {400}  # eight pairs of 100 in two rows


def test_tables_have_room_for_the_most_pairs_of_a_row() -> None:
    assert most_pairs_in_a_row(np.array([100] * 50), pairs_a_step=8, budget=450) == 4
    assert most_pairs_in_a_row(np.array([100] * 50), pairs_a_step=8, budget=10**6) == 8


@pytest.mark.parametrize(
    ("family", "recorded"),
    [("llama", True), ("nemotron_h", True), ("mamba2", True), ("gpt_neox", True), ("lfm2_moe", False), ("doge", False)],
)
def test_layers_are_recorded_unless_values_choose_what_they_launch(family: str, recorded: bool) -> None:
    model = add_adapter(tiny_model(family), rank=4, seed=0)  # on a CPU experts are not computed in one call
    assert FusedLayers(model).launches_by_shape(*text_layers(model)) == recorded


@pytest.mark.parametrize(("family", "in_steps"), [("jamba", {"mamba_selective_scan"}), ("qwen3_5_text", set())])
def test_scans_that_run_in_steps_are_known(family: str, in_steps: set[str]) -> None:
    assert Policy(tiny_model(family)).recurrence.in_steps == in_steps


def test_most_rows_are_padded_little() -> None:
    draw = np.random.default_rng(1)
    tokens = np.exp(draw.normal(6.5, 0.8, 2000)).astype(int)
    lengths = lengths_by_count(likely_rows(tokens, 8, 32768), 128)[-1].lengths
    assert len(lengths) <= RECORDED and lengths == sorted(lengths) and not any(n % 128 for n in lengths)
    rows = [int(draw.choice(tokens, 8).sum()) for _ in range(500)]
    padded = [padded_length(row, lengths) for row in rows]
    assert all(length >= row for row, length in zip(rows, padded, strict=True))
    assert sum(padded) < 1.04 * sum(rows)
    assert sum(length in lengths for length in padded) > 0.95 * len(rows)


@pytest.mark.parametrize(("tokens", "length"), [(100, 100), (200, 256), (256, 256), (257, 384), (385, 385)])
def test_the_next_length_or_none_where_it_is_far(tokens: int, length: int) -> None:
    assert padded_length(tokens, [256, 384]) == length


@pytest.mark.parametrize(
    ("tokens", "worth", "length"), [(100, 256, 256), (100, 255, 100), (257, 300, 257), (256, 1, 256), (300, 384, 384)]
)
def test_a_row_is_padded_as_far_as_replaying_takes_less_than_running_it(tokens: int, worth: int, length: int) -> None:
    assert padded_length(tokens, [256, 384], worth) == length


def test_a_recorded_row_has_memory_for_another_beside_it() -> None:
    tight, plenty = (Execution(8192, Room(total=total, base=1.0, layer=2.0)) for total in (1000.0, 2000.0))
    assert beside_another(plenty, 200, layers=2) == plenty, f"{HELD_ROWS} rows are kept whole"
    shared = beside_another(tight, 200, layers=2).room
    assert shared is not None and (shared.total, shared.kept(200, 2)) == (500.0, 0)
    for given in (Execution(8192, EVERYTHING), Execution(8192)):
        assert beside_another(given, 10**6, layers=2) == given, "what the user decided stays"
    small = Execution.treating(8192, "offload")
    assert beside_another(small, 10**6, layers=2) == replace(small, head_chunk=128 * 2**20)


@pytest.mark.parametrize(
    ("given", "used", "fits"), [("keep", 10**12, True), ("recompute", 39, True), ("offload", 40, False)]
)
def test_a_second_row_is_tried_out_where_no_room_was_measured(
    given: Any, used: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(add_adapter(tiny_model("llama"), rank=4, seed=0))
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    monkeypatch.setattr(graph_selection, "usable_bytes", lambda _: 20 + 2 * 39 + 8 * trained)
    probe: Any = SimpleNamespace(policy=policy, at_rest=lambda: 20, peak=lambda *_: 20 + used)
    assert graph_selection._two_fit(probe, Execution.treating(512, given), 256) is fits


def test_one_length_serves_a_data_set_of_one() -> None:
    assert lengths_by_count(likely_rows(np.array([70]), 1, 8192), 128) == [Lengths([128], 128.0)]


def test_each_number_of_lengths_pads_least() -> None:
    rows = np.array([1, 1, 1, 2, 4, 4, 5, 7])
    choices = lengths_by_count(rows, 1)
    for choice in choices:
        sets = (set(few) | {7} for few in combinations(range(1, 7), len(choice.lengths) - 1))
        totals = [sum(padded_length_of(row, few) for row in rows) for few in sets]
        assert sum(padded_length_of(row, set(choice.lengths)) for row in rows) == min(totals)
        assert choice.row == min(totals) / len(rows)
    assert [len(choice.lengths) for choice in choices] == [1, 2, 3, 4, 5]


def padded_length_of(row: int, lengths: set[int]) -> int:
    return min(length for length in lengths if length >= row)


def test_seconds_are_least_where_rows_are_run_that_padding_would_make_slower() -> None:
    rows, times = np.array([1, 1, 2, 4, 4, 8]), RowTimes(run=3.0, token=1.0, recording=1.0)
    for choice in lengths_by_count(rows, 1, times):
        sets = (set(few) | {8} for few in combinations((1, 2, 4), len(choice.lengths) - 1))
        totals = [sum(seconds_of(row, few, times) for row in rows) for few in sets]
        assert sum(seconds_of(row, set(choice.lengths), times) for row in rows) == min(totals)
        assert choice.row == min(totals) / len(rows)


def seconds_of(row: int, lengths: set[int], times: RowTimes) -> float:
    return min(max(times.run, times.token * row), times.token * padded_length_of(row, lengths))


@pytest.mark.parametrize(
    ("rows_to_come", "run", "token", "recording", "lengths"),
    [
        (12, 0.55, 0.1e-3, 1.6, [2048]),  # NF4, one pair at a time: launches take five sixths of a step
        (1000, 0.55, 0.1e-3, 1.6, [512, 768, 1024, 1408, 2048]),
        (12, 0.55, 0.26e-3, 1.6, [1024, 2048]),  # 5.7 s instead of 6.6
        (12, 0.55, 0.5e-3, 1.6, []),  # the GPU has almost as long to do
        (10**6, 0.55, 0.6e-3, 1e-9, [512, 640, 768, 2048]),
        (10**6, 0.1, 1e-3, 0.1, []),  # launches are never waited for
    ],
)
def test_a_longer_run_records_more_lengths_and_one_that_gains_nothing_none(
    rows_to_come: int, run: float, token: float, recording: float, lengths: list[int]
) -> None:
    rows = np.array([500, 520, 700, 760, 900, 1000, 1024, 1300, 1400, 2000])
    assert worthwhile(rows, 128, rows_to_come, RowTimes(run, token, recording)) == lengths


def test_tables_of_another_row_take_the_place() -> None:
    device = torch.device("cpu")
    target = PrefixLayout((Document(0, 30, (90, 128)), Document(128, 256)))
    source = PrefixLayout((Document(0, 5, (100, 200)), Document(200, 256)))
    kinds = [BlockKind(None, 64, 64, False, device), BlockKind(None, 64, 32, True, device)]
    for kind in kinds:
        block_tables(target, kind)
    target.token_tables(device)
    tables = [*(block_tables(target, kind).buffer for kind in kinds), target.token_tables(device).buffer]
    overwrite_tables(target, source)
    fresh = PrefixLayout(source.documents)
    wanted = [*(block_tables(fresh, kind).buffer for kind in kinds), fresh.token_tables(device).buffer]
    assert all(map(torch.equal, tables, wanted))
    with pytest.raises(ValueError, match="tables of a row of 64 tokens"):
        overwrite_tables(target, PrefixLayout((Document(0, 64),)))


@pytest.mark.parametrize("documents", [1, 4, 7])
def test_tables_of_recurrent_layers_are_those_of_another_row(documents: int) -> None:
    device, layouts = torch.device("cpu"), [made_up_layout(256, count) for count in (documents, 4)]
    target, source = layouts[0].with_room(7), layouts[1]
    convolved, cut = neighbours_of(target, 4, device), segments_of(target, 64, device)
    assert tables_hold(target, source) and target.room == 7
    overwrite_tables(target, source)
    fresh = source.with_room(7)
    expected = neighbours_of(fresh, 4, device), segments_of(fresh, 64, device)
    assert torch.equal(convolved.before, expected[0].before) and torch.equal(convolved.after, expected[0].after)
    assert torch.equal(cut.buffer, expected[1].buffer) and cut.counts == expected[1].counts
    exact = segments_of(source, 64, device)
    for own, wanted in ((cut.chunk_bounds, exact.chunk_bounds), (cut.branches_of, exact.branches_of)):
        assert torch.equal(own[: len(wanted)], wanted) and not own[len(wanted) :].any(), "what is left over is empty"
    stems, all_stems = exact.counts.stems, cut.counts.stems
    runs = torch.cat([cut.runs[:stems], cut.runs[all_stems : all_stems + exact.counts.branches]])
    assert torch.equal(runs, exact.runs) and cut.runs.count_nonzero() == exact.runs.count_nonzero()
    assert torch.equal(cut.stem_of[: exact.counts.branches], exact.stem_of)


def test_any_row_of_so_many_documents_fits_and_one_of_more_is_refused() -> None:
    target = made_up_layout(640, 2).with_room(9)
    segments_of(target, 64, torch.device("cpu"))
    for seed in range(50):
        assert tables_hold(target, made_up_layout(640, 9, seed))
    more = made_up_layout(640, 10)
    assert not tables_hold(target, more)
    with pytest.raises(ValueError, match="does not fit into tables"):
        overwrite_tables(target, more)


def test_scans_in_pytorch_are_refused() -> None:
    layout = made_up_layout(64, 2)
    prefix_chunks(layout, 16, torch.device("cpu"))
    with pytest.raises(NotImplementedError, match="Triton"):
        overwrite_tables(layout, made_up_layout(64, 2))


def made_up_layout(tokens: int, documents: int, seed: int = 0) -> PrefixLayout:
    """Documents of two branches each, of random lengths, which fill a row."""
    ends = np.sort(np.random.default_rng(seed).choice(np.arange(1, tokens), 3 * documents - 1, replace=False))
    cut = [0, *ends.tolist(), tokens]
    return PrefixLayout(
        tuple(Document(a, b, (c, d)) for a, b, c, d in zip(cut[::3], cut[1::3], cut[2::3], cut[3::3], strict=False))
    )


def test_a_row_that_another_backend_computed_is_refused() -> None:
    layout = PrefixLayout((Document(0, 64),))
    prefix_attention(*(torch.ones(1, 1, 64, 8) for _ in range(3)), layout, scale=1.0, backend="sdpa")
    with pytest.raises(NotImplementedError, match="Triton"):
        overwrite_tables(layout, PrefixLayout((Document(0, 64),)))


def test_the_state_of_a_model_is_what_its_layers_look_at() -> None:
    model = add_adapter(tiny_model("llama"), rank=4, seed=0)
    state = ModelState(model)
    first = state.read()
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    factor = layer.lora_B["default"]
    factor.weight.data.add_(1)
    assert state.read() == first  # values may change where they lie
    with model.disable_adapter():
        assert state.read() != first
    assert state.read() == first
    handle = layer.register_forward_hook(lambda *_: None)
    assert state.read() != first
    handle.remove()
    model.eval()
    assert state.read() != first
    model.train()
    own, factor.weight = factor.weight, torch.nn.Parameter(factor.weight.clone())
    assert state.read() != first
    factor.weight = own
    assert state.read() == first
    layer.scaling["default"] *= 2
    assert state.read() != first


def test_hooks_of_others_are_told_from_those_of_the_libraries() -> None:
    model = add_adapter(tiny_model("llama"), rank=4, seed=0)
    model.enable_input_require_grads()
    assert not ModelState(model).hooks_of_others()
    handle = model.get_base_model().model.norm.register_forward_hook(lambda *_: None)
    assert ModelState(model).hooks_of_others()
    handle.remove()
    assert not ModelState(model).hooks_of_others()


def test_without_a_gpu_nothing_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    policy = Policy(add_adapter(tiny_model("llama"), rank=4, seed=0))
    step, execution = PreferenceStep(policy, AdapterDisabled(policy), Objective()), Execution(512)
    with caplog.at_level(logging.WARNING):
        found = with_cuda_graphs(step, execution, np.array([40, 60]), 2, wanted="on", steps=1000)
    assert found is execution
    assert "there is no CUDA GPU" in caplog.text


@dataclass
class FakeGraphs:
    """What is recorded, planned and released."""

    lengths: list[int] = field(default_factory=list)
    worth: int | None = None
    released: bool = False

    @property
    def recorded(self) -> int:
        return len(self.lengths)

    def plan(self, lengths: Sequence[int], worth: int | None) -> None:
        self.lengths, self.worth = list(lengths), worth

    def release(self) -> None:
        self.released = True


@pytest.mark.parametrize(
    ("wanted", "launched", "steps", "before", "at_first", "padded", "said"),
    [
        ("auto", 0.9, 100, None, [128], [128], "running a row takes 0.50 s, replaying it 0.977 s for 1,000 tokens"),
        ("auto", 0.4, 1000, None, [], None, "the host launches a row in 0.20 s of the 0.50 s that it takes"),
        ("auto", 0.9, 4, None, [], None, "only 4 rows are to come"),
        ("on", 0.4, 4, None, [128], [128], "1 rows were recorded in 0.1 s"),
        ("on", 0.4, 4, PaddedTo((128, 256), 300), [256], [128, 256], "2 rows were recorded"),  # a resumed run
        ("auto", 0.9, 4, PaddedTo((128, 256), 300), [256], [128, 256], "2 rows were recorded"),
    ],
)
def test_what_is_recorded_before_the_first_step_and_what_is_said(
    wanted: str,
    launched: float,
    steps: int,
    before: PaddedTo | None,
    at_first: list[int],
    padded: list[int] | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    graphs, lengths = FakeGraphs(), []

    def record(_trials: Any, _replaying: Any, _graphs: Any, wanted: list[int]) -> float:
        lengths.extend(wanted)
        graphs.lengths = sorted(lengths)
        return 0.1

    def timing(_self: Any, _length: int, execution: Execution) -> Timing:
        return Timing(0.125 if execution.graphs else 0.5, 0.5 * launched)

    monkeypatch.setattr(graph_selection, "_obstacle", lambda *_: None)
    monkeypatch.setattr(graph_selection, "_two_fit", lambda *_: True)
    monkeypatch.setattr(graph_selection, "_free_bytes", lambda: 0)
    monkeypatch.setattr(graph_selection, "CudaGraphs", lambda *_: graphs)
    monkeypatch.setattr(graph_selection, "_record", record)
    monkeypatch.setattr(RowProbe, "timing", timing)
    policy = Policy(add_adapter(tiny_model("llama"), rank=4, seed=0), row_multiple=128)
    step, execution = PreferenceStep(policy, AdapterDisabled(policy), Objective()), Execution(512)
    with caplog.at_level(logging.INFO):
        found = with_cuda_graphs(step, execution, np.array([40, 60]), 2, wanted=wanted, steps=steps, before=before)
    assert lengths == at_first and said in caplog.text
    assert (found.graphs is graphs) == (padded is not None) and graphs.lengths == (padded or [])
    assert graphs.worth == (before.worth if before else 512 if wanted == "auto" and padded else None)


@pytest.mark.parametrize("gains", ["nothing", "an error"])
def test_what_a_trial_recorded_is_released_where_it_gains_nothing(
    gains: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = FakeGraphs()

    def record(*_: Any) -> float:
        if gains == "an error":
            raise RuntimeError("not permitted\nwhen a stream is capturing")
        return 0.1

    monkeypatch.setattr(graph_selection, "_obstacle", lambda *_: None)
    monkeypatch.setattr(graph_selection, "_two_fit", lambda *_: True)
    monkeypatch.setattr(graph_selection, "_free_bytes", lambda: 0)
    monkeypatch.setattr(graph_selection, "CudaGraphs", lambda *_: graphs)
    monkeypatch.setattr(graph_selection, "_record", record)
    monkeypatch.setattr(RowProbe, "timing", lambda *_: Timing(0.5, 0.5))
    policy = Policy(add_adapter(tiny_model("llama"), rank=4, seed=0), row_multiple=128)
    step, execution = PreferenceStep(policy, AdapterDisabled(policy), Objective()), Execution(512)
    with caplog.at_level(logging.INFO):
        found = with_cuda_graphs(step, execution, np.array([40, 60]), 2, wanted="auto", steps=99)
    assert found is execution and graphs.released
    why = (
        "No CUDA graph is recorded: not permitted."
        if gains == "an error"
        else "because 97 rows are to come, and running"
    )
    assert why in caplog.text and ("WARNING" in caplog.text) == (gains == "an error")


def test_the_pass_of_rows_with_stored_references_is_recorded_too(tmp_path: Path) -> None:
    policy = Policy(add_adapter(tiny_model("llama"), rank=4, seed=0))
    inner, pairs = AdapterDisabled(policy), [truncated_pair(*pair) for pair in tiny_pairs(3)]
    kept = CachedReference(inner, policy, ReferenceStore(tmp_path / "store"), lambda: reference_identity(policy))
    step = PreferenceStep(policy, kept, Objective())

    def references(first: int, *, seen_again: bool) -> list[Any]:
        return [one.reference for one in passes_to_come(step, pairs[:first], seen_again=seen_again)]

    assert references(3, seen_again=True) == [kept], "two passes: the policy's is the same"
    inner.in_lockstep = True
    assert references(3, seen_again=False) == [kept]
    beside, alone = references(3, seen_again=True)
    assert beside is kept and isinstance(alone, NoReference)
    kept.logps(policy.collate(pairs[:2]))
    assert (
        kept.lockstep_reference(policy.collate(pairs[:2])) is None
        and kept.lockstep_reference(policy.collate(pairs)) is not None
    )
    assert [type(one) for one in references(2, seen_again=False)] == [NoReference]
    assert references(3, seen_again=False) == [kept]
    step.reference = inner
    assert references(3, seen_again=True) == [inner]


def test_every_kind_of_pass_is_recorded_for_each_length() -> None:
    ran: list[tuple[str, int]] = []
    trials: Any = [
        SimpleNamespace(run=lambda length, _: ran.append(("beside", length))),
        SimpleNamespace(run=lambda length, _: ran.append(("alone", length))),
    ]
    graphs: Any = SimpleNamespace(recording=nullcontext)
    graph_selection._record(trials, Execution(512), graphs, [128, 256])
    assert ran == [("beside", 256), ("alone", 256), ("beside", 128), ("alone", 128)]
