"""Both tools, over hundreds of situations and hostile text: the same bytes, or the same refusal."""

from __future__ import annotations

import ast
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from both_tools import JAVASCRIPT_TOOL, PYTHON_TOOL, Answer, in_javascript, in_python

from wishbone.config.load import parse_config
from wishbone.planning.gpus import SOLD, known_gpus
from wishbone.planning.known_models import known_shapes
from wishbone.planning.situation import SYMPTOMS

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="no Node here: install nodejs, 18 or later")

HOSTILE = [
    "quote ' and \" both", "back\\slash\\", "</script><script>alert(1)</script>", "\u00e9\u00df\u6f22 \U0001f600",
    "{model.name} {fact}", "'''\"\"\"", "%s ${x} `id` $(id)", "# no comment", "yes", "1e5", "~",
    " leading and trailing ", "a: b", "- x", "\\u0041\\N{BULLET}", "\u202eright to left\ufeff", "C:\\new\\table",
    "x" * 300, "=", "pairs.JSONL",
    "a,b", "{", "[1]", "!tag", "&anchor *alias", "|", ">",
]  # fmt: skip
WRONG = ["", "line\nbreak", "tab\t", "nul\x00", "\x7f", "\u2028", "\x85"]
WRONG_NUMBERS = [
    "0", "-1", "1.5", "16.0", "1e3", "abc", "", "null", "true", ".inf", ".nan", "007", "+5", "99999999999999999999",
    "1e-5", "'3'", "1_000", "\uff11", "-0.0", "2k", "4,096", "2048 tokens", "8GB", "7b", "5%", "1/20", "1x10^-5", "0,5",
]  # fmt: skip
TOGETHER = [
    "--symptom nan --symptom nan", "--reference given", "--gpu RTX4091 --format xml --gpus 0", "--gpu H100",
    "--prompt-tokens 900", "--gpus 2", "--gpu-memory-gib 8", "--reference-model other", "--target trl --method full",
    "--format yml", "--format py", "--format constructor", "--gpu cpu --gpus 2",
]  # fmt: skip


def situation(chance: random.Random) -> list[str]:
    """Flags of a situation, mostly of one that can be."""
    names = list(known_shapes())
    prompt, completion = chance.randint(1, 3000), chance.randint(1, 3000)
    flags = {
        "--model": chance.choice([*names, "smollm2-135m-instruct", "org/unknown", chance.choice(HOSTILE)]),
        "--data": chance.choice(["pairs.jsonl", "org/pairs", "p.csv", chance.choice(HOSTILE)]),
        "--parameters-billion": f"{chance.choice([0.1, 1, 3, 8, 14.5, 70, 500])}",
        "--gpu": chance.choice(
            ["none", *known_gpus(), *(f"NVIDIA {name.lower()}" for name in known_gpus()), *(f"{gb} GB" for gb in SOLD)]
        ),
        "--prompt-tokens": str(prompt),
        "--completion-tokens": str(completion),
        "--longest-tokens": str((prompt + completion) * chance.choice([1, 2, 5])),
        "--format": chance.choice(["yaml", "json", "python"]),
        "--target": chance.choice(["wishbone", "trl", "unsloth"]),
        "--method": chance.choice(["lora", "lora", "full"]),
    }
    if chance.random() < 0.3:
        flags |= {"--reference": "given", "--reference-model": chance.choice([flags["--model"], *HOSTILE])}
    if flags["--gpu"] != "none" and chance.random() < 0.3:
        flags |= {
            "--gpus": str(chance.choice([1, 2, 8, 64])),
            "--gpu-memory-gib": str(chance.choice([4, 23.5, 80, 300])),
        }
    if chance.random() < 0.5:
        flags["--pairs"] = str(chance.choice([1, 300, 1599, 1600, 5000, 60_000, 100_000, 10**9]))
    if chance.random() < 0.3:
        flags["--learning-rate"] = chance.choice(["5e-6", "2e-4", "1e-5", "3.3e-7", "0.5", "1", "1e-300"])
    words = [word for item in flags.items() for word in (item if chance.random() < 0.8 else ["=".join(item)])]
    for symptom in chance.sample(SYMPTOMS, chance.choice([0, 0, 1, 2, 4, 8])):
        words += ["--symptom", symptom]
    return words + ["--noisy-labels"] * chance.choice([0, 0, 1])


def problems(answer: Answer) -> str:
    """What a refusal says, without the colours and folds of a terminal."""
    return " ".join(answer.said.split())


@pytest.mark.parametrize("situations", [100, pytest.param(300, marks=pytest.mark.long)])
def test_any_situation_gives_the_same_bytes(situations: int):
    chance = random.Random(20261121 + situations)
    asked = [situation(chance) for _ in range(situations)]
    written = 0
    for words, python, javascript in zip(asked, in_python(asked), in_javascript(asked), strict=True):
        assert (javascript.status, javascript.text) == (python.status, python.text), words
        if python.status:
            assert problems(javascript) == problems(python), words
            continue
        written += 1
        form = next(
            word.removeprefix("--format=")
            for word in words
            if word.removeprefix("--format=") in ("yaml", "json", "python")
        )
        if form == "python":
            ast.parse(python.text)
        elif form == "json":
            json.loads(python.text)
        if form != "python" and "wishbone train FILE" in python.text:
            parse_config(python.text)
    assert written > 0.8 * situations


def test_wrong_answers_are_refused_alike():
    base = ["--model", "smollm2-135m-instruct", "--data", "p.jsonl"]
    asked = [
        [*base, flag, text]
        for flag in ("--model", "--data", "--output", "--gpu", "--reference-model")
        for text in WRONG
    ]
    numbers = ("--gpus", "--pairs", "--longest-tokens", "--parameters-billion", "--gpu-memory-gib", "--learning-rate")
    asked += [[*base, flag, text] for flag in numbers for text in WRONG_NUMBERS]
    asked += [
        [*base, flag, "lorra"] for flag in ("--method", "--reference", "--target", "--symptom", "--format", "--gpu")
    ]
    asked += [[], ["--model", "m"], ["--model", "org/model", "--data", "d"]]
    asked += [[*base, *more.split()] for more in TOGETHER]
    refused = 0
    for words, python, javascript in zip(asked, in_python(asked), in_javascript(asked), strict=True):
        assert (javascript.status, javascript.text) == (python.status, python.text), words
        if python.status:
            refused += 1
            assert problems(javascript) == problems(python), words
    assert refused > 100


def test_which_gpu_was_assumed_is_said_alike():
    names = [
        "H100",
        "RTX 40",
        "4090 laptop",
        "24GB",
        "24",
        "20 GB",
        "a 48GB card",
        "80g",
        "24GB 4090",
        "mi300x",
        "A100 80 GB",
        "1x V100 32g",
        "H200x8",
        "2x RTX 4090",
        "Radeon 7900",
        "CPU",
        "no GPU",
        "no",
        "-4GB",
        "a .24GB card",
        "RTX -4090",
    ]
    asked = [["--model", "Qwen/Qwen3-8B", "--data", "p.jsonl", "--gpu", name] for name in names]
    asked[0] += ["--output", "-"]
    said = 0
    for words, python, javascript in zip(asked, in_python(asked), in_javascript(asked), strict=True):
        assert (javascript.status, javascript.text) == (python.status, python.text), words
        if words[5] in ("CPU", "no GPU", "no"):
            assert python.status == 0 and "dtype: float32" in python.text
        if python.status == 0 and (noted := re.search(r"note: .+? is taken for .+", javascript.said)):
            said += 1
            assert " ".join(noted[0].split()) in problems(python), words
    assert said == 5 and not Path("-").exists()


@pytest.mark.parametrize("words", [["--nonsense", "1"], ["word"], ["--model"], ["--noisy-labels=1"]])
def test_what_is_no_flag_is_refused(words: list[str]):
    assert [answer.status for answer in (*in_python([words]), *in_javascript([words]))] == [2, 2]


def test_a_directory_tells_its_own_shape(tmp_path: Path):
    shape = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256}
    shape |= {"num_hidden_layers": 32, "num_attention_heads": 32}
    folders = {"sound": json.dumps(shape), "lacking": json.dumps({"hidden_size": -1}), "list": "[]"}
    for name, text in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    asked = [["--model", str(tmp_path / name), "--data", "d", "--gpu", "RTX 3090"] for name in folders]
    python, javascript = in_python(asked), in_javascript(asked)
    assert [answer.status for answer in python] == [0, 2, 2]
    assert [answer[:2] for answer in javascript] == [answer[:2] for answer in python]
    assert [problems(answer) for answer in javascript[1:]] == [problems(answer) for answer in python[1:]]


def test_as_programs_and_into_a_file(tmp_path: Path):
    flags = [
        "--model",
        "Qwen/Qwen3-8B",
        "--data",
        "p.jsonl",
        "--gpu",
        "L4",
        "--symptom",
        "collapse",
        "--format",
        "python",
    ]
    files = []
    for program in ([sys.executable, str(PYTHON_TOOL)], ["node", str(JAVASCRIPT_TOOL)]):
        outcome = subprocess.run([*program, *flags], capture_output=True, check=True)
        file = tmp_path / program[0].rpartition("/")[2]
        subprocess.run([*program, *flags, "--output", str(file)], capture_output=True, check=True)
        again = subprocess.run([*program, *flags, "--output", str(file)], capture_output=True, check=False)
        assert again.returncode == 2
        assert b"exists" in again.stderr
        assert file.read_bytes() == outcome.stdout
        files.append(outcome.stdout)
    assert files[0] == files[1]


def test_help_has_every_flag():
    for answer in (*in_python([["--help"]]), *in_javascript([["--help"]])):
        assert answer.status == 0
        for flag in ("--model", "--gpu-memory-gib", "--symptom", "--noisy-labels", "--format"):
            assert flag in answer.text
