"""What is published loads on another machine, says what it is, and gives away nothing of this one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from fake_run import write_fake_run
from hub_stand_in import hub_stand_in
from learned import Learned
from peft import AutoPeftModelForCausalLM
from result.conftest import Command

from wishbone.config import parse_config
from wishbone.model.agreement import real_sequences, sequence_logps
from wishbone.model.saved_adapter import name_base
from wishbone.result.card import code


@pytest.fixture
def told(run: Path, tmp_path: Path) -> Path:
    """The run with metrics, a summary and versions."""
    fake = write_fake_run(tmp_path / "fake", steps=20, every=5)
    for name in ("metrics.jsonl", "summary.json", "environment.json"):
        shutil.copy(fake / name, run / name)
    return run


@pytest.mark.slow
def test_an_adapter_is_published_and_loads_elsewhere(
    told: Path, learned: Learned, wishbone: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (told / "adapter" / "secret.txt").write_text("mine")
    (told / "adapter" / "training_args.bin").write_bytes(b"mine")
    with hub_stand_in() as hub:
        hub.repositories["someone/base"] = {p.name: p.read_bytes() for p in Path(learned.base.name).iterdir()}
        hub.private["someone/base"] = False
        result = wishbone("push", told, "someone/mine", "--base", "someone/base", "--private", "--license", "mit")
        assert result.exit_code == 0, result.stderr
        files = hub.files("someone/mine")
        assert hub.private["someone/mine"]
        elsewhere = AutoPeftModelForCausalLM.from_pretrained("someone/mine", cache_dir=tmp_path / "other machine")
    assert {"README.md", "curves.svg", "wishbone.yaml", "adapter_config.json"} <= files.keys()
    assert not {"secret.txt", "training_args.bin", "config.yaml"} & files.keys()
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content], "a path was published"
    sequences = real_sequences(learned.tokenizer)
    apart = sequence_logps(elsewhere, sequences) - sequence_logps(learned.merged, sequences)
    assert apart.abs().max() < 1e-3
    card = files["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    about = yaml.safe_load(front)
    assert (about["base_model"], about["license"], about["library_name"]) == ("someone/base", "mit", "peft")
    for said in (
        "`pairs.jsonl`, a local file",
        "| Loss | 0.6931 | ",
        "`sigmoid`",
        "![Loss",
        "wishbone train wishbone.yaml",
    ):
        assert said in text, said
    settings = parse_config(files["wishbone.yaml"].decode())
    assert (settings.model.name, settings.data.train) == ("someone/base", "pairs.jsonl")
    ElementTree.fromstring(files["curves.svg"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["merged", "full"])
def test_a_whole_model_is_published(
    kind: str, told: Path, learned: Learned, wishbone: Command, tmp_path: Path, request: pytest.FixtureRequest
):
    if kind == "full":
        request.getfixturevalue("full_run")
    with hub_stand_in() as hub:
        result = wishbone("push", told, "someone/whole", *(["--merged"] if kind == "merged" else []))
        assert result.exit_code == 0, result.stderr
        files = hub.files("someone/whole")
    assert "adapter_config.json" not in files and "model.safetensors" in files
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    about = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert about["library_name"] == "transformers" and "base_model" not in about
    assert json.loads(files["config.json"])["dtype"] == ("bfloat16" if kind == "merged" else "float32")


@pytest.mark.slow
def test_what_cannot_be_published_is_refused_and_leaves_nothing(told: Path, wishbone: Command):
    with hub_stand_in() as hub:
        alone = wishbone("push", told, "someone/mine")
        assert alone.exit_code == 2 and "--base OWNER/MODEL" in alone.stderr and "--merged" in alone.stderr
        for name in ("mine", "a/b/c", "some one/mine", "someone/.."):
            assert wishbone("push", told, name, "--merged").exit_code == 2
        hub.failing = "POST /api/repos/create"
        refused = wishbone("push", told, "someone/mine", "--base", "a/b")
        assert refused.exit_code == 2 and "hf auth login" in refused.stderr
        assert not hub.repositories


def test_a_dry_run_prints_the_card_and_publishes_nothing(told: Path, wishbone: Command):
    with hub_stand_in() as hub:
        result = wishbone("push", told, "someone/mine", "--base", "a/b", "--dry-run")
        assert result.exit_code == 0 and "# mine" in result.stdout and "adapter_model.safetensors" in result.stdout
        assert not hub.repositories
    asked = wishbone("push", told, "someone/mine", "--base", "a/b", "--dry-run", "--json")
    shown = json.loads(asked.stdout)
    assert shown["published"] is None and "# mine" in shown["card"]
    assert shown["files"]["adapter_model.safetensors"] > 999
    sizes = re.findall(r"^file: .+ \((\d+) (KiB|MiB)\)$", result.stdout, re.MULTILINE)
    assert len(sizes) >= 5 and all(int(size) > 0 for size, _ in sizes)


@pytest.mark.parametrize(("rank", "said"), [(4, "8"), (12, "16"), (200, "256"), (600, None)])
def test_the_card_starts_vllm_with_a_rank_that_it_takes(told: Path, wishbone: Command, rank: int, said: str | None):
    text = (told / "config.yaml").read_text()
    (told / "config.yaml").write_text(text.replace("rank: 16", f"rank: {rank}"))
    card = wishbone("push", told, "someone/mine", "--base", "a/b", "--dry-run").stdout
    command = f"vllm serve a/b --enable-lora --max-lora-rank {said} --lora-modules mine=someone/mine"
    assert (command in card) == (said is not None) == ("vllm serve" in card)


def test_texts_of_a_run_cannot_leave_their_place_in_the_card(told: Path, wishbone: Command):
    summary = json.loads((told / "summary.json").read_text())
    evil = "`</td>\n---\n# Owned | <script>alert(1)</script> ![x](http://e.vil)"
    (told / "summary.json").write_text(json.dumps(summary | {"steps": evil, "pairs": {"train": evil, "heldout": evil}}))
    result = wishbone("push", told, "someone/mine", "--base", "a/b", "--dry-run")
    assert "\n# Owned" not in result.stdout
    for line in result.stdout.splitlines():
        if "script" in line:
            quoted = line.split("`")[1::2]
            assert all("script" not in part for part in line.split("`")[0::2]) and quoted
    assert code("a`b\nc") == "`a'b c`"


def test_an_adapter_names_its_base_as_the_person_did(tmp_path: Path, run: Path):
    adapter = run / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "/root/.cache/w/x-v1"})
    )
    (adapter / "README.md").write_text("base_model: /root/.cache/w/x-v1\n")
    name_base(adapter, "smollm2-135m-instruct")
    named = json.loads((adapter / "adapter_config.json").read_text())
    assert named == config | {"base_model_name_or_path": "smollm2-135m-instruct", "revision": None}
    assert (adapter / "README.md").read_text() == "base_model: smollm2-135m-instruct\n"
