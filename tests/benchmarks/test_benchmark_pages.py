"""Results as tables, targets, pictures and the page in docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.commands import suite
from benchmarks.harness.results import Results
from benchmarks.harness.systems import SYSTEMS
from benchmarks.rendering import page, targets
from benchmarks.rendering.agreement import compare
from benchmarks.rendering.published import counted_tflops, factors_table, published_table
from benchmarks.rendering.real_pairs_tables import cpu_table, quality_table
from benchmarks.rendering.scatter import scatter
from benchmarks.rendering.speed_tables import longest_table, throughput_table


def test_agreement_is_students_t():
    # equal spreads of 1 and three runs: t(0.975, 4) * sqrt(2 / 3) = 2.7764 * 0.81650
    found = compare([0.0, 1.0, 2.0], [5.0, 6.0, 7.0])
    assert found is not None
    assert found.allowed == pytest.approx(2.7764 * 0.81650, rel=1e-3)
    assert found.difference == -5 and not found.agree
    close = compare([0.0, 1.0, 2.0], [2.0, 3.0, 4.0])
    assert close is not None and close.agree
    counted = compare([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], granularity=1 / 60)
    assert counted is not None and counted.agree and 0.005 < counted.allowed < 0.02
    assert compare([1.0], [2.0]) is None
    with pytest.raises(ValueError, match="cannot be compared"):
        compare([1.0, 2.0], [1.0])


def row(system: str, case: str = "ultrafeedback:8", speed: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "kind": "throughput",
        "size": "8b",
        "system": system,
        "case": case,
        "status": "ok",
        "pairs_per_s": speed,
        "useful_tflops": 100 * speed,
        "peak_gib": 20.0,
        "first_step_seconds": 30.0,
        "compiled_later": {"graphs": 0, "kernels": 0},
        "losses": [0.693147],
        "tokens_per_pair": {"unique": 900.0, "two_sequences": 1100.0, "scored": 700.0},
        **more,
    }


def failed(system: str, reason: str) -> dict[str, Any]:
    start = {"kind": "throughput", "size": "8b", "system": system, "case": "ultrafeedback:8"}
    return {**start, "status": "failed", "reason": reason, "phase": "step 1 of 11"}


def quality(system: str, accuracy: list[float], loss: list[float]) -> dict[str, Any]:
    return {
        "kind": "quality",
        "size": None,
        "system": system,
        "case": "m",
        "status": "ok",
        "training": {"heldout": 60},
        "heldout_accuracy": accuracy,
        "heldout_loss": loss,
        "heldout_margin": [0.1, 0.2, 0.3],
        "last_epoch_loss": loss,
        "pairs_per_s": 3.0,
        "peak_gib": 1.0,
        "runs": [{"losses": [0.7, value]} for value in loss],
    }


def some_results() -> Results:
    results = Results([{"command": "c", "date": "d", "commit": None, "hardware": {"gpus": [], "cpu": "x", "cores": 1}}])
    results.calls[0]["python"] = "3.12"
    for entry in (
        row("unsloth-bf16", speed=2.0),
        row("wishbone-bf16", speed=9.0, peak_gib=50.0),
        row("trl-liger-bf16", speed=1.5),
        failed("unsloth-fp8", "out of | memory: [bold]<b>`x`"),
        {"kind": "ceilings", "size": None, "system": "", "case": "this card", "status": "ok", "rates": [],
         "bf16_tflops": 1000.0, "fp8_tflops": 2000.0, "copy_tb_per_s": 4.0},
        quality("trl-bf16", [0.5, 0.55, 0.6], [0.60, 0.61, 0.62]),
        quality("wishbone-bf16", [0.5, 0.6, 0.6], [0.60, 0.61, 0.63]),
        quality("wishbone-fp8", [0.5, 0.6, 0.6], [0.90, 0.91, 0.92]),
    ):  # fmt: skip
        results.add(entry)
    return results


def test_published_rates_are_counted_as_ours_and_the_ratio_is_taken_apart():
    results = some_results()
    for entry in results.rows:
        if entry["kind"] == "throughput":
            entry["tokens_per_pair"] = {"unique": 800.0, "two_sequences": 1000.0}
    lines = published_table(results).rows
    assert lines[0][2:4] == ("H100", "fp8") and lines[-1][0] == "wishbone-bf16"
    # two products of 2 FLOP with 2 heads of 8 x 8 for q and o, half of that for k and v, 3 x 16 x 20, and 16 x 10
    shape = {"hidden": 16, "inner": 20, "layers": 1, "heads": 2, "key_value_heads": 1, "vocabulary": 10}
    weights = 16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 20 + 16 * 10
    assert counted_tflops({"shape": shape, "tokens_per_s": 1e12}) == pytest.approx(4 * weights)
    assert factors_table(results).rows == [("ultrafeedback", "4.50x", "1.25x", "1.33x", "2.70x")]


def test_tables_show_ratios_shares_and_failures():
    table = throughput_table(some_results())
    cells = {line[0]: line for line in table.rows}
    assert cells["wishbone-bf16"][2:6] == ("9.00", "4.50", "900", "90%")
    assert cells["unsloth-bf16"][3] == ""
    assert cells["unsloth-fp8"][2] == "failed"
    assert table.notes == ("unsloth-fp8, 8b ultrafeedback:8: out of | memory: [bold]<b>`x` (at: step 1 of 11)",)
    lines = {line[0]: line for line in quality_table(some_results()).rows}
    assert "agrees" in lines["wishbone-bf16"][3] and "DIFFERS" in lines["wishbone-fp8"][3]
    assert longest_table(some_results()).rows == []


def test_targets_say_what_was_reached_missed_and_not_measured():
    lines = {line[0]: line for line in targets.targets_table(some_results()).rows}
    reached = lines["bf16, ultrafeedback: over Unsloth"]
    assert reached[1:] == ("reached", ">= 4.3x", "", "4.5x")
    assert lines["bf16, ultrafeedback: of the card's bf16 products (hoped for)"][4] == "90%"
    assert lines["NF4, ultrafeedback, memory free: over Unsloth NF4"][1] == "not measured"
    slow = some_results()
    slow.add(row("wishbone-bf16", speed=8.0, compiled_later={"graphs": 1, "kernels": 2}))
    lines = {line[0]: line for line in targets.targets_table(slow).rows}
    assert lines["bf16, ultrafeedback: over Unsloth"][1] == "MISSED"
    assert lines["compilations after the first step, most of any row"][4] == "3"
    assert targets.disagreements(slow) is None  # one of the systems is missing
    slow.add(quality("wishbone-nf4", [0.5, 0.6, 0.6], [0.60, 0.61, 0.63]))
    assert targets.disagreements(slow) == 2


def test_two_machines_are_compared_where_both_have_a_ratio():
    elsewhere = Results(some_results().calls)
    for entry in (row("unsloth-bf16", speed=3.0), row("wishbone-bf16", speed=9.0)):
        elsewhere.add(entry)
    assert targets.elsewhere_table(some_results(), elsewhere).rows == [
        ("bf16, ultrafeedback: over Unsloth", "4.5x", "3x"),
    ]


def cpu_run(system: str, number: int, speed: float, peak: float, losses: list[float]) -> dict[str, Any]:
    start = {"kind": "cpu", "size": None, "system": system, "case": f"m, round {number}", "status": "ok"}
    measured = {
        "pairs_per_s": speed,
        "processor_seconds_per_pair": 2 / speed,
        "peak_gib": peak,
        "losses": losses,
        "others": 0.01 * number,
    }
    return {**start, **measured, "versions": {"trl": "1.16.0"}}


def test_the_cpu_table_shows_medians_of_runs_beside_the_first_system():
    results = some_results()
    for number, (theirs, ours) in enumerate([(0.5, 2.0), (0.4, 2.4), (0.6, 2.2)], 1):
        results.add(cpu_run("trl-f32", number, theirs, 10.0, [0.5, 0.25]))
        results.add(cpu_run("wishbone-f32", number, ours, 4.0, [0.5, 0.25 + number / 1024]))
    theirs, ours = cpu_table(results).rows
    assert theirs == ("trl-f32", "1.16.0", "0.5000", "0.5000, 0.4000, 0.6000", "", "4.00", "10.00", "", "", "3.0%")
    assert ours[2:] == ("2.2000", "2.0000, 2.4000, 2.2000", "4.40", "0.91", "4.00", "0.40", "2.9e-03", "3.0%")


def test_a_search_that_ran_out_of_time_is_no_ratio():
    def search(system: str, tokens: int, stopped_by: str) -> dict[str, Any]:
        return {"kind": "longest", "size": "8b", "system": system, "case": "24 GiB", "status": "ok", "tokens": tokens,
                "stopped_by": stopped_by}  # fmt: skip

    ratio, own = targets.longest("wishbone-nf4-small", "unsloth-nf4"), targets.longest("wishbone-nf4-small")
    results = some_results()
    results.add(search("wishbone-nf4-small", 4096, "time"))
    assert (ratio(results), own(results)) == (None, 4096)
    results.add(search("unsloth-nf4", 1024, "time"))
    assert ratio(results) is None
    results.add(search("unsloth-nf4", 1024, "resolution"))
    assert ratio(results) == 4


def test_every_target_is_about_a_row_of_the_plan():
    planned = {(job.kind, job.size, job.system, job.case) for job in suite.h200()}
    assert all(system.partition(":")[0] in SYSTEMS for kind, _, system, _ in planned if kind != "ceilings")

    class Asked(Results):
        def find(self, kind: str, size: str | None, system: str, case: str) -> None:
            asked.add((kind, size, system, case))

    asked: set[tuple[Any, ...]] = set()
    for target in targets.TARGETS:
        target.value(Asked())
    assert asked and asked <= planned


def test_results_are_written_read_and_continued(tmp_path: Path):
    results = some_results()
    path = tmp_path / "deep" / "results.json"
    results.write(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]
    again = Results.read(path)
    assert again.rows == results.rows
    assert again.has(row("wishbone-bf16")) and not again.has(row("wishbone-bf16", case="other"))
    again.calls.append(results.calls[0])
    again.add(row("wishbone-bf16", speed=3.0))
    found = again.find("throughput", "8b", "wishbone-bf16", "ultrafeedback:8")
    assert found is not None and found["pairs_per_s"] == 3.0 and found["call"] == 1
    both = Results.read(path, path)
    assert len(both.rows) == len(results.rows) and {entry["call"] for entry in both.rows} == {1}
    path.write_text("[]")
    with pytest.raises(SystemExit, match=r"results\.json cannot be read"):
        Results.read(path)


def test_the_page_is_fresh():
    text = page.PAGE.read_text(encoding="utf-8")
    results = Results.read(*page.RESULTS)
    assert page.render(text, results) == text, "run python -m benchmarks document"
    for name, (draw, _) in page.PICTURES.items():
        picture = draw(results)
        assert picture is None or page.PAGE.with_name(name).read_text(encoding="utf-8") == f"{picture}\n"


def test_the_page_shows_results_and_nothing_of_a_log_becomes_markup():
    fresh = page.PAGE.read_text(encoding="utf-8")
    shown = page.render(fresh, some_results())
    assert "| wishbone-bf16 | 8b ultrafeedback:8 | 9.00 | 4.50 |" in shown
    assert "`unsloth-fp8`, throughput 8b ultrafeedback:8: `out of | memory: [bold]<b>'x' (at: step 1 of 11)`" in shown
    assert "(benchmarks-speed.svg)" in shown and "(benchmarks-loss.svg)" in shown
    assert page.render(shown, Results()) == page.render(fresh, Results())
    with pytest.raises(ValueError, match="no parts named poem"):
        page.render("<!-- generated: poem -->\n<!-- end -->", Results())


def test_pictures_are_whole_documents():
    import xml.etree.ElementTree as ElementTree

    for draw, _ in page.PICTURES.values():
        picture = draw(some_results())
        assert picture is not None
        ElementTree.fromstring(picture)
    drawn = scatter([row("wishbone-<b>", speed=2.0), failed("trl-bf16", "x")], "t")
    assert drawn is not None
    texts_of = [node.text for node in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert "wishbone-<b>" in texts_of and "trl-bf16" not in texts_of
