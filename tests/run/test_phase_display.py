"""Phases as a terminal and a pipe show them, and the memory of how long they took."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from wishbone.phases import begin, end, heard, listening, phase
from wishbone.run import phase_display
from wishbone.run.phase_display import LastTimes, PhaseDisplay, duration, phases_shown


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=110, height=25, color_system=None)


def shown(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_nobody_listens_unless_asked(tmp_path: Path):
    assert not heard()
    with phase("trial") as quiet:
        quiet.more()
    display = PhaseDisplay(console(False), tmp_path / "phases.json")
    with listening(display):
        assert heard()
    assert not heard()


def test_a_terminal_shows_bars_and_keeps_a_line_of_each_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(phase_display, "SHOWN_FROM", 0.0)
    screen = console(True)
    display = PhaseDisplay(screen, tmp_path / "phases.json")
    with listening(display):
        training = begin("training", 4, "step")
        for step in range(1, 5):
            training.to(step, f"loss {1 / step:.3f}")
            if step == 2:
                with phase("evaluation", 3) as evaluation:
                    evaluation.more()
        end(training)
        with phase("tokenizing", 1, "pair") as tokenizing:
            tokenizing.more()
    display.close()
    text = shown(screen)
    assert "4/4" in text and "loss 0.250" in text
    lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n")]
    assert any(line.startswith("training") and line.endswith("4 steps") for line in lines)
    assert any(line.startswith("tokenizing") and line.endswith("1 pair") for line in lines)
    assert not any(line.startswith("evaluation") and line.endswith(" s") and "/" not in line for line in lines)


def test_a_pipe_gets_lines(tmp_path: Path):
    screen = console(False)
    display = PhaseDisplay(screen, tmp_path / "phases.json")
    with listening(display), phase("training", 20, "step") as training:
        for step in range(1, 21):
            with phase("evaluation", 2):
                pass
            training.to(step, f"loss {step}")
    display.close()
    assert shown(screen).splitlines() == [f"step {step}/20  loss {step}" for step in range(2, 21, 2)]


def test_times_are_remembered_and_a_damaged_memory_does_no_harm(tmp_path: Path):
    memory = tmp_path / "cache" / "phases.json"
    display = PhaseDisplay(console(True), memory)
    with listening(display), phase("model", note="tiny"):
        pass
    display.close()
    assert set(json.loads(memory.read_text())) == {"model tiny"}
    with phase("model", note="tiny") as again:
        assert LastTimes(memory).of(again) is not None
    for text in ("{", "[]", '{"model tiny": "long"}', '{"model tiny": -1}', '{"model tiny": 1e999}'):
        memory.write_text(text)
        assert LastTimes(memory).of(again) is None
    memory.unlink()
    memory.mkdir()
    display = PhaseDisplay(console(True), memory)
    with listening(display), phase("model"):
        pass
    display.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.9, "9.9 s"), (9.96, "10 s"), (75, "1 min 15 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_pipe_is_told_how_far_a_long_phase_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(phase_display, "TOLD_EVERY", 0.0)
    screen = console(False)
    with (
        listening(PhaseDisplay(screen, tmp_path / "phases.json")),
        phase("training", 4, "step"),
        phase("forward", 30, "layer", note="12,345 tokens") as forward,
    ):
        forward.to(2)
    assert shown(screen).splitlines() == ["training 0/4 steps, forward 2/30 layers (12,345 tokens)"]


def test_the_ends_of_passes_over_long_rows_are_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(phase_display, "TOLD_FROM", 0.0)
    screen = console(False)
    with phases_shown(screen), phase("answers", 1, "answer"), phase("forward", 30, "layer"):
        pass
    assert [line.split()[0] for line in shown(screen).splitlines()] == ["answers"]
