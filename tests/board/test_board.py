"""The board: what it shows of runs that are written meanwhile, and whom it does not answer."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_run import write_fake_run

from wishbone.board import runs as board_runs
from wishbone.board.parts import board_parts
from wishbone.board.runs import Runs
from wishbone.board.server import BoardServer, changes, lasting_token
from wishbone.errors import RequestError

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("board.test.js")
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


def enrich(run: Path, text: str = "An answer.") -> Path:
    """What a run writes beside what `write_fake_run` writes."""
    guard = [
        {"kind": "answers", "step": step, "prompts": [f"Why {text}?"], "answers": [f"{text} {step // 2}"]}
        for step in (3, 4, 6)
    ]
    guard.append({"kind": "note", "step": 4, "text": f"Seen {text}"})
    said = dict.fromkeys(("title", "seen", "advice", "action"), text)
    guard.append({"kind": "alarm", "step": 6, "since": 4, "sign": "kl", "severity": "problem", **said})
    (run / "guard.jsonl").write_text("".join(json.dumps(row) + "\n" for row in guard))
    pair = {
        "heldout": True,
        "lengths": [2, 3, 900],
        "prompt": ["a", text],
        "chosen": [text] * 3,
        "rejected": ["b"] * 400,
    }
    (run / "pairs.json").write_text(json.dumps({"pairs": [pair]}))
    summary = json.loads((run / "summary.json").read_text())
    summary["memory_plan"] = {"items": {"weights": 1.5, text: 0.5}, "total": 2.0, "limit": 8.0}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


@contextmanager
def serving(*places: Path) -> Iterator[BoardServer]:
    server = BoardServer(Runs(places), "0123456789abcdef0123", free_port())
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ask(server: BoardServer, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer.headers


def test_every_view_is_there_and_only_what_changed_comes_again(tmp_path: Path):
    run = enrich(write_fake_run(tmp_path / "one", steps=40))
    runs = Runs([tmp_path])
    first = changes(runs, {})
    (named,) = first["runs"]
    assert named["name"] == "one" and named["live"] is False
    html = {part["name"]: part["html"] for part in first["changed"] if part["group"] == named["id"]}
    assert "<svg" in html["charts"] and "Held-out pair" in html["pairs"] and "900 tokens" in html["pairs"]
    assert "measured peak" in html["memory"] and "may be used" in html["memory"]
    assert "step 3" in html["over-time"] and "step 4" in html["over-time"] and "step 6" in html["over-time"]
    assert "wishbone export" in html["next"]
    known = {f"{part['group']}/{part['name']}": part["hash"] for part in first["changed"]}
    assert changes(runs, known)["changed"] == []
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "loss": 0.123}\n{"step": 42, "lo')  # and the run is writing on
    again = {part["name"] for part in changes(runs, known)["changed"]}
    assert "charts" in again and "pairs" not in again and "settings" not in again


def test_a_run_is_there_from_its_beginning(tmp_path: Path):
    runs = Runs([tmp_path])
    assert runs.now() == []
    assert "as soon as one begins" in board_parts([])["all"]["overview"]
    (tmp_path / "new").mkdir()
    assert runs.now() == []  # a directory that nobody has claimed
    (tmp_path / "new" / ".lock").write_text("process 1 on a machine")
    (tmp_path / "new" / "metrics.jsonl").write_text('{"step": 0, "eval_loss": 0.69, "eval_rewards/margins": 0.0}\n')
    (shown,) = runs.now()
    assert shown.record.status == "starting" and Runs([tmp_path / "new"]).now()[0].id == shown.id
    parts = board_parts([shown])
    assert "starting" in parts["all"]["overview"] and "0.69" in parts["all"]["overview"]
    assert "reads its pairs" in parts[shown.id]["next"] and "starting" in parts[shown.id]["head"]
    assert changes(runs, {})["runs"][0]["live"] is True
    shutil.rmtree(tmp_path / "new")  # the run was refused
    assert runs.now() == []


def test_live_runs_keep_their_places(tmp_path: Path):
    for name in ("b", "a", "c"):
        write_fake_run(tmp_path / name, steps=3)
    runs = Runs([tmp_path])
    for newest in ("a", "c", "b"):
        later = time.time() + 10
        os.utime(tmp_path / newest / "metrics.jsonl", (later, later))
        assert [shown.name for shown in runs.now()] == ["a", "b", "c"]


def test_answers_that_did_not_change_are_told_once(tmp_path: Path):
    run = enrich(write_fake_run(tmp_path / "one", steps=5))
    rows = [{"kind": "answers", "step": step, "prompts": ["p"], "answers": ["same"]} for step in (1, 2, 3)]
    (run / "guard.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (shown,) = Runs([run]).now()
    assert board_parts([shown])[shown.id]["over-time"].count("same") == 1


def test_an_unchanged_run_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_fake_run(tmp_path / "one", steps=5)
    runs = Runs([tmp_path])
    first = runs.now()[0].record
    monkeypatch.setattr(board_runs, "read_run", lambda path: pytest.fail("read again"))
    assert runs.now()[0].record is first


def test_several_runs_are_compared_and_come_and_go(tmp_path: Path):
    for name in ("a", "b"):
        write_fake_run(tmp_path / name, steps=30, collapse=name == "b")
    runs = Runs([tmp_path])
    parts = board_parts(runs.now())
    assert "a, held out" in parts["all"]["curves"] and "line two" in parts["all"]["curves"]
    assert parts["all"]["overview"].count("<tr>") == 3
    write_fake_run(tmp_path / "c", steps=3, finished=False)
    assert {run.name for run in runs.now()} == {"a", "b", "c"}
    shutil.rmtree(tmp_path / "a")
    assert {run.name for run in runs.now()} == {"b", "c"}
    shutil.rmtree(tmp_path / "b")
    assert board_parts(runs.now())["all"]["curves"] == ""


def test_ids_are_unique_on_the_page(tmp_path: Path):
    for name in ("a", "b"):
        write_fake_run(tmp_path / name, steps=30)
    html = "".join(part for group in board_parts(Runs([tmp_path]).now()).values() for part in group.values())
    ids = [piece.partition('"')[0] for piece in html.split(' id="')[1:]]
    assert len(ids) == len(set(ids)) > 20
    for wanted in html.split(' aria-labelledby="')[1:]:
        assert set(wanted.partition('"')[0].split()) <= set(ids)


def test_whatever_a_run_holds_is_text(tmp_path: Path):
    run = enrich(write_fake_run(tmp_path / "one", steps=5), HOSTILE)
    answers = [{"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE, "chosen": HOSTILE}]
    (run / "answers.json").write_text(json.dumps(answers))
    run = run.rename(tmp_path / "<b>run")
    text = json.dumps(changes(Runs([run]), {}))
    assert "<img" not in text and "<script" not in text and "<b>run" in json.dumps(changes(Runs([run]), {})["runs"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "pairs.json",
            '{"pairs": [1, {"prompt": 3, "chosen": [1, null], "rejected": {}, "lengths": [1e99, -1, "x"]}]}',
        ),
        ("pairs.json", "[]"),
        (
            "guard.jsonl",
            '{"kind": "answers", "step": "x", "prompts": 1}\n{"kind": "answers", "step": 1, "prompts": [1]}\n',
        ),
        ("summary.json", '{"memory_plan": {"items": {"a": "b", "c": -1, "d": true}, "limit": "x"}, "steps": "many"}'),
        ("summary.json", '{"memory_plan": [], "peak_memory_gib": NaN}'),
        ("metrics.jsonl", '{"step": 1, "memory_gib": null, "loss": "x"}\n'),
    ],
)
def test_damaged_files_are_shown_as_far_as_they_go(tmp_path: Path, name: str, text: str):
    run = enrich(write_fake_run(tmp_path / "one", steps=5))
    (run / name).write_text(text)
    assert changes(Runs([run]), {})["runs"][0]["name"] == "one"


def test_whom_the_server_answers(tmp_path: Path):
    write_fake_run(tmp_path / "one", steps=5)
    with serving(tmp_path) as server:
        token, port = server.token, server.server_address[1]
        assert server.server_address[0] == "127.0.0.1"
        status, page, headers = ask(server, "GET", f"/{token}/")
        assert status == 200 and b'<script src="board.js"' in page
        assert (
            "default-src 'none'" in headers["Content-Security-Policy"]
            and "unsafe" not in headers["Content-Security-Policy"]
        )
        assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
        assert ask(server, "HEAD", f"/{token}/")[:2] == (200, b"")
        for file in ("board.js", "board.css"):
            assert ask(server, "GET", f"/{token}/{file}")[0] == 200
        answer = ask(server, "POST", f"/{token}/parts", "{}")
        assert answer[0] == 200 and json.loads(answer[1])["runs"][0]["name"] == "one"
        for path in (
            "/",
            f"/{token}",
            f"/{token[:-1]}x/",
            f"/{token}x/",
            f"/{token}/../{token}/x",
            f"/{token}/server.py",
        ):
            assert ask(server, "GET", path)[0] == 404, path
        assert ask(server, "GET", f"/{token}/", Host="evil.example")[0] == 403
        assert ask(server, "GET", f"/{token}/", Host=f"evil.example:{port}")[0] == 403
        assert ask(server, "POST", f"/{token}/parts", "{}", Origin="http://evil.example")[0] == 403
        assert ask(server, "POST", f"/{token}/parts", "{}", Origin=f"http://127.0.0.1:{port}")[0] == 200
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            assert ask(server, method, f"/{token}/")[0] == 405
        assert ask(server, "POST", f"/{token}/other", "{}")[0] == 405
        assert ask(server, "POST", f"/{token}/parts", "x" * 300_000)[0] == 413
        for body in ("", "[", "[]", '{"a": 1}', "[" * 50_000):
            assert ask(server, "POST", f"/{token}/parts", body)[0] == 200


def test_a_taken_port_is_refused_and_the_next_free_one_is_found(tmp_path: Path):
    with serving(tmp_path) as server:
        with pytest.raises(RequestError, match="name a free port"):
            BoardServer(Runs([tmp_path]), "t", server.server_address[1])
        other = BoardServer(Runs([tmp_path]), "t")
        assert other.server_address[1] != server.server_address[1]
        other.server_close()


def test_the_token_lasts_and_is_the_users_own(tmp_path: Path):
    path = tmp_path / "cache" / "board-token"
    token = lasting_token(path)
    assert len(token) == 32 and lasting_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)  # another user may have read it
    assert lasting_token(path) != token
    path.write_text("short")
    assert len(lasting_token(path)) == 32


def test_thousands_of_points_stay_a_small_page(tmp_path: Path):
    run = write_fake_run(tmp_path / "long", steps=6000, every=100)
    runs = Runs([run])
    runs.now()
    began = time.perf_counter()
    size = len(json.dumps(changes(runs, {})))
    assert size < 1_500_000
    assert time.perf_counter() - began < 10


@pytest.mark.slow
def test_the_command_prints_its_address_and_ends_quietly(tmp_path: Path):
    environment = os.environ | {"WISHBONE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "wishbone", "board", "--port", str(free_port())]
    addresses = []
    for there in (False, True):  # a board may be opened before anything has run
        if there:
            write_fake_run(tmp_path / "runs" / "one", steps=5)
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        addresses.append(process.stdout.readline().strip())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "ended" in said and "Traceback" not in said
        assert ("runs/ is not there yet" in said) is not there
    assert addresses[0] == addresses[1] and addresses[0].startswith("http://127.0.0.1:")
    missing = subprocess.run(
        [*command, "nowhere"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2 and "'nowhere' is not a directory" in missing.stderr


@pytest.mark.long
@pytest.mark.slow
def test_in_chromium(tmp_path: Path):
    builder = ROOT / "builder"
    if not shutil.which("node"):
        pytest.skip("no Node here: install nodejs, 18 or later")
    program = "process.stdout.write(require('./chromium/browser.js').missing() || '')"
    lacks = subprocess.run(["node", "-e", program], cwd=builder, capture_output=True, text=True, check=True).stdout
    if lacks:
        pytest.skip(lacks)
    enrich(write_fake_run(tmp_path / "runs" / "first", steps=200))
    enrich(write_fake_run(tmp_path / "runs" / "second", steps=200, collapse=True, finished=False), HOSTILE)
    with serving(tmp_path / "runs") as server:
        environment = os.environ | {
            "BOARD": server.url, "RUNS": str(tmp_path / "runs"), "SHOTS": str(tmp_path), "BUILDER": str(builder)
        }  # fmt: skip
        outcome = subprocess.run(
            ["node", "--test", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
