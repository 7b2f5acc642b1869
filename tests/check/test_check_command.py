"""`wishbone check` as a person meets it: exit status, findings, the clean copy, the page."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer
from typer.testing import CliRunner

from wishbone.check.examine import examine
from wishbone.check.kinds import KINDS
from wishbone.check.model_view import ModelView
from wishbone.check.reading import PairReader
from wishbone.check.sample import chosen_pairs, views
from wishbone.cli import app
from wishbone.data.row_reader import NumberedRow
from wishbone.data.source import load_pairs, open_rows
from wishbone.data.tokenize import tokenize_batch, tokenize_pairs

CLEAN = [
    {"prompt": "How long do I boil an egg?", "chosen": "Ten minutes.", "rejected": "Eggs have a long history."},
    {"prompt": "Is Pluto a planet?", "chosen": "No, it is called a dwarf planet.", "rejected": "Who knows."},
    {"prompt": "What does a baker make?", "chosen": "Bread and cakes.", "rejected": "Bakers are admired a lot."},
]


def row(number: int, **changed: str) -> dict[str, str]:
    return {"prompt": f"Question {number}?", "chosen": f"Answer {number} it is.", "rejected": "Nobody knows."} | changed


SPOILED: list[Any] = [
    *CLEAN,
    row(4, chosen=""),
    row(5, rejected="Answer 5 it is."),
    row(6),
    row(6),
    row(7),
    {"prompt": "Question 7?", "chosen": "Nobody knows.", "rejected": "Answer 7 it is."},
    row(10, chosen="Answer<|im_end|> it is."),
    {"prompt": 7, "chosen": "a", "rejected": "b"},
    row(12),
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def check(*arguments: str | Path) -> tuple[int, str]:
    outcome = CliRunner().invoke(app, ["check", *map(str, arguments)])
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit), outcome.exception
    return outcome.exit_code, outcome.stdout


def reader(path: Path) -> PairReader:
    return PairReader(*open_rows(str(path)))


def test_exit_status(tmp_path: Path) -> None:
    status, told = check(write(tmp_path / "clean.jsonl", CLEAN))
    assert (status, "clean: " in told) == (0, True)
    assert check(write(tmp_path / "spoiled.jsonl", SPOILED))[0] == 1
    assert check(tmp_path / "missing.jsonl")[0] == 2
    assert check(write(tmp_path / "none.jsonl", [{"a": 1}] * 3))[0] == 2
    assert check(write(tmp_path / "empty.jsonl", []))[0] == 2


def test_what_json_says(tmp_path: Path) -> None:
    held_out = write(tmp_path / "held.jsonl", [row(12, chosen="Something else."), *CLEAN[:1]])
    data = write(tmp_path / "data.jsonl", [one | {"source": "x"} if isinstance(one, dict) else one for one in SPOILED])
    status, told = check(data, "--held-out", held_out, "--json")
    found = json.loads(told)
    assert status == 1
    assert found["data"][0] | {"name": ""} == {
        "name": "",
        "rows": 12,
        "layout": "text",
        "judged": None,
        "not_read": ["source"],
    }
    assert (found["pairs"], found["held_out"], found["unit"]) == (11, 2, "characters")
    counted = {one["name"]: (one["count"], one["rows"]) for one in found["findings"]}
    assert counted == {
        "unreadable": (1, ["line 11"]),
        "empty": (1, ["line 4"]),
        "identical": (1, ["line 5"]),
        "duplicate": (1, ["line 7"]),
        "contradiction": (2, ["line 8", "line 9"]),
        "held_out": (2, ["line 1", "line 12"]),
        "special_tokens": (1, ["line 10"]),
    }
    for one in found["findings"]:
        assert one["why"] and one["remedy"] and one["severity"] == KINDS[one["name"]].severity
    assert found["lengths"]["prompt"]["longest"] == max(len(one["prompt"]) for one in SPOILED if one["prompt"] != 7)


def test_columns_have_the_names_of_the_data(tmp_path: Path) -> None:
    rows = [{"asked": one["prompt"], "chosen": one["chosen"], "rejected": one["rejected"]} for one in CLEAN]
    data = write(tmp_path / "data.jsonl", rows)
    assert check(data)[0] == 2
    status, told = check(data, "--column", "prompt=asked", "--json")
    found = json.loads(told)
    assert (status, found["data"][0]["not_read"]) == (0, [])
    assert found["example"]["read"]["prompt"] == [["", CLEAN[0]["prompt"]]]
    for wrong in ("prompt", "prompt=", "=asked", "nonsense=asked", "prompt=missing"):
        assert check(data, "--column", wrong)[0] == 2


def test_several_files_are_one_set(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", CLEAN[:2]), write(tmp_path / "two.jsonl", [CLEAN[2], CLEAN[0]])
    status, told = check(one, two, "--json")
    (finding,) = json.loads(told)["findings"]
    assert (status, finding["name"], finding["details"]) == (
        1,
        "duplicate",
        ["two.jsonl line 2 repeats one.jsonl line 1"],
    )


def test_the_clean_copy_is_clean_and_never_replaces_a_file(tmp_path: Path) -> None:
    data, copy = write(tmp_path / "data.jsonl", SPOILED), tmp_path / "copy.jsonl"
    status, told = check(data, "--fix", copy)
    assert status == 1
    assert "5 pairs. Left out:" not in told
    kept = [json.loads(line) for line in copy.read_text(encoding="utf-8").splitlines()]
    assert kept == [*CLEAN, row(6), SPOILED[9], row(12)]
    line = told.partition("copy: ")[2]
    assert "6 pairs" in line
    for label in ("not a pair (1)", "empty completion (1)", "same completions (1)", "contradiction (2)"):
        assert label in line
    assert "Still there: special token in a text (1)" in line
    before = copy.read_bytes()
    assert check(data, "--fix", copy)[0] == 2
    assert copy.read_bytes() == before
    assert check(data, "--fix", data)[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "copy.jsonl"}
    assert check(write(tmp_path / "again.jsonl", [one for one in kept if one != SPOILED[9]]))[0] == 0


def test_data_that_changes_meanwhile_is_not_copied(tmp_path: Path) -> None:
    from wishbone.check.cleaned import write_cleaned
    from wishbone.errors import RequestError

    data = write(tmp_path / "data.jsonl", SPOILED)
    found = examine([reader(data)])
    for rows in (SPOILED[:5], [*SPOILED, row(99)]):
        write(data, rows)
        with pytest.raises(RequestError, match="changed while it was read"):
            write_cleaned(found, tmp_path / "copy.jsonl")
    assert not (tmp_path / "copy.jsonl").exists()


def test_texts_on_a_chat_model_are_seen_as_training_sees_them(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ bos_token }}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    model = ModelView(tokenizer)
    rendered = [one | {"prompt": f"{tokenizer.bos_token}{one['prompt']}{tokenizer.eos_token}"} for one in CLEAN]
    for rows, raw, turned in ((CLEAN, False, True), (CLEAN, True, False), (rendered, False, False)):
        data = write(tmp_path / "data.jsonl", rows)
        found = examine([reader(data)], model=model, template="none" if raw else "auto")
        turns = load_pairs(str(data), turns=turned)
        assert found.readers[0].contents.turned == turned
        assert found.ledger.lengths("prompt").tolist() == list(map(len, tokenize_pairs(turns, tokenizer)["prompt_ids"]))
        assert not found.findings
        (view,) = views(found, [0], model, 1000)
        assert view.tokens is not None
        text = "".join(text for text, _ in view.tokens["prompt"])
        assert (tokenizer.eos_token in text) == (turned or rows is rendered)


def test_tokens_are_what_the_model_sees(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    data = write(tmp_path / "data.jsonl", [*CLEAN, row(4, chosen="Caf\u00e9 \U0001f600!", prompt="\u4e2d\u6587")])
    model = ModelView(tokenizer, positions=20)
    found = examine([reader(data)], model=model, template="none")
    pairs = [pair for _, pair in reader(data)]
    names = ("prompt", "chosen", "rejected")
    batch = {name: [pair[name] for pair in pairs] for name in names}
    ids = tokenize_batch(tokenizer, batch, [0, 1, 2, 3])
    assert found.unit == "tokens"
    shown = views(found, [0, 1, 2, 3], model, 10_000)
    for index, view in enumerate(shown):
        for side in names:
            expected = ids[f"{side}_ids"][index]
            assert found.ledger.lengths(side)[index] == len(expected)
            assert view.tokens is not None
            text = "".join(text for text, _ in view.tokens[side])
            assert text == tokenizer.decode(expected, clean_up_tokenization_spaces=False)
    long = [len(prompt) >= 20 for prompt in ids["prompt_ids"]]
    assert found.ledger.has("too_long").tolist() == long and any(long)


def test_pairs_that_the_template_refuses_are_named_and_the_others_seen(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'no' in m['content']|string %}{{ raise_exception('never') }}{% endif %}"
        "{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    rows = [
        {"prompt": [{"role": "user", "content": text}], "chosen": f"{text} x", "rejected": "y"}
        for text in ("a", "no", "b")
    ]
    found = examine([reader(write(tmp_path / "data.jsonl", rows))], model=ModelView(tokenizer))
    (refused,) = [one for one in found.findings if one.name == "refused"]
    assert refused.rows == ("line 2",) and "never" in refused.details[0]
    assert found.ledger.lengths("chosen").tolist()[1] == 0 and found.ledger.lengths("chosen").tolist()[2] > 0


def test_text_that_the_template_loses_is_named(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": 1}}}]}
    prompt = [{"role": "user", "content": "Look!"}]
    rows = [
        {"prompt": prompt, "chosen": [call], "rejected": "No."},
        {"prompt": prompt, "chosen": "Yes.", "rejected": "No."},
    ]
    found = examine([reader(write(tmp_path / "data.jsonl", rows))], model=ModelView(tokenizer))
    named = {finding.name: finding for finding in found.findings}
    assert {"lost_text", "empty"} <= named.keys()
    assert named["lost_text"].rows == ("line 1",) and "look" in named["lost_text"].details[0]
    assert found.ledger.of_pair(1) == ()


def test_the_sample_holds_some_of_each_finding_and_is_bounded(tmp_path: Path) -> None:
    rows = [row(number, prompt=f"Question {number} of many?") for number in range(2000)]
    for number in range(1000, 1100):
        rows[number]["chosen"] = " "
    rows[1999] = row(1999, rejected="Answer 1999 it is.")
    found = examine([reader(write(tmp_path / "data.jsonl", rows))])
    indices = chosen_pairs(found.ledger)
    assert indices == sorted(set(indices)) and len(indices) < 250
    assert set(range(1000, 1020)) <= set(indices) and {0, 1999} <= set(indices)
    assert [view.place for view in views(found, indices, None, 100)] == [f"line {index + 1}" for index in indices]


@pytest.mark.slow
def test_texts_are_not_kept() -> None:
    def rows() -> Iterator[NumberedRow]:
        for number in range(1, 251):
            text = f"{number} is longer than most " * 1000
            yield number, f"line {number}", row(number, chosen=text, prompt=f"{text}?")

    tracemalloc.start()
    try:
        examine([PairReader("made", rows)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # the texts have 14 MB


def test_without_a_model_no_torch_is_loaded(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", CLEAN)
    code = (
        "import sys; from wishbone.check.examine import examine; from wishbone.check.reading import PairReader\n"
        "from wishbone.data.files import data_files, read_rows; from pathlib import Path\n"
        "files = data_files(Path(sys.argv[1]), 'train')\n"
        "examine([PairReader('data', lambda: read_rows(files))])\n"
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(data)], check=False).returncode == 0


RANKED = [
    {"instruction": f"Question {n}?", "generations": [f"Good {n}.", f"Fair {n}.", f"Bad {n}."], "ratings": [5, 4, 1]}
    for n in range(3)
]


def test_scored_rows_become_pairs_by_the_rule_that_is_asked_for(tmp_path: Path) -> None:
    data = write(tmp_path / "ranked.jsonl", RANKED)
    for options, pairs in (
        ((), 3),
        (("--pairs", "best_rest"), 6),
        (("--pairs", "all"), 9),
        (("--pairs", "all", "--least-margin", "2"), 6),
    ):
        found = json.loads(check(data, "--json", *options)[1])
        assert found["pairs"] == pairs
        assert found["data"][0]["judged"].startswith(f"{pairs} pairs of 3 rows")
    assert check(data, "--pairs", "best_worst", "--least-margin", "9")[0] == 2


def test_a_column_without_a_name_is_not_read(tmp_path: Path) -> None:
    rows = [one | {"history": [["Hi", "Hello."]]} for one in CLEAN]
    data = write(tmp_path / "data.jsonl", rows)
    with_history, without = (json.loads(check(data, "--json", *more)[1]) for more in ((), ("--column", "history=")))
    assert [side[1] for side in with_history["example"]["read"]["prompt"]] == ["Hi", "Hello.", CLEAN[0]["prompt"]]
    assert [side[1] for side in without["example"]["read"]["prompt"]] == [CLEAN[0]["prompt"]]


def chat_model(folder: Path) -> Path:
    """The directory of a model's tokenizer and configuration, without weights."""
    model = folder / "model"
    tiny_tokenizer().save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 4096}', encoding="utf-8")
    return model


def test_the_file_of_a_run_is_checked_as_the_run_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "ranked.jsonl", RANKED)
    write(tmp_path / "held.jsonl", CLEAN)
    run = tmp_path / "run.yaml"
    run.write_text(
        f"model: {{name: {chat_model(tmp_path)}}}\n"
        "data: {train: ranked.jsonl, eval: held.jsonl, pairs: all, max_length: 40, system_prompt: Be brief.}\n",
        encoding="utf-8",
    )
    found = json.loads(check(run, "--json")[1])
    assert (found["pairs"], found["held_out"], found["unit"]) == (9, 3, "tokens")
    assert found["max_length"][0]["limit"] == 40
    assert "Be brief." in "".join(found["example"]["tokens"]["prompt"])
    assert json.loads(check(run, "data.pairs=best_worst", "--json")[1])["pairs"] == 3
    assert check(run, "--pairs", "all")[0] == 2
    assert check(run, "data.nonsense=1")[0] == 2


def test_texts_with_a_system_prompt_are_turns(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", CLEAN)
    run = tmp_path / "run.yaml"
    run.write_text(
        f"model: {{name: {chat_model(tmp_path)}}}\ndata: {{train: pairs.jsonl, system_prompt: Be brief.}}\n",
        encoding="utf-8",
    )
    status, told = check(run, "--json")
    assert status == 0
    assert "Be brief." in "".join(json.loads(told)["example"]["tokens"]["prompt"])
