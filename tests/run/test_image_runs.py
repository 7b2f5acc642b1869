"""Runs of files with images: read with limits, trained in the stem, the same as in a script."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from tiny_vision import image_pairs, tiny_vision_model, tiny_vision_processor

from wishbone.check.cleaned import write_cleaned
from wishbone.check.examine import examine
from wishbone.cli.check_request import CheckRequest
from wishbone.config.schema import DataConfig, RunConfig
from wishbone.data import images
from wishbone.errors import RequestError
from wishbone.model.adapter import add_adapter, lora_config
from wishbone.model.load import load_model, load_processor, load_tokenizer
from wishbone.planning.lengths import measured_lengths
from wishbone.report.answers import answer_before_and_after, question_from_text
from wishbone.result.evaluation import evaluate
from wishbone.result.export import Exporter
from wishbone.result.finished_run import finished_run
from wishbone.run.prepare_data import prepare_data
from wishbone.run.run import train
from wishbone.run.shown_pairs import questions_with_images
from wishbone.run.training_arguments import training_arguments
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.image_dataset import LENGTHS, prepare_image_pairs
from wishbone.trainer.image_rows import ImageRows
from wishbone.trainer.image_tokens import trained_columns
from wishbone.trainer.trainer import DPOTrainer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("vision")
    processor = tiny_vision_processor()
    tiny_vision_model(processor).save_pretrained(place)
    processor.save_pretrained(place)
    return place


def png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def write_pairs(folder: Path, kind: str, count: int = 6) -> Path:
    """Pairs about random images: as paths, as parts of messages, as data URLs, or as Parquet's structs."""
    (folder / "img").mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(image_pairs(count)):
        content = png(row["images"][0])
        (folder / f"img/{number}.png").write_bytes(content)
        said: dict[str, Any] = {name: row[name] for name in ("prompt", "chosen", "rejected")}
        said["chosen"] = [{"role": "assistant", "content": f"It is number {number}."}]
        if kind == "column":
            said["images"] = [f"img/{number}.png"]
        elif kind == "parts":
            text = row["prompt"][0]["content"]
            parts = [{"type": "image", "image": f"img/{number}.png"}, {"type": "text", "text": text}]
            said["prompt"] = [{"role": "user", "content": parts}]
        elif kind == "url":
            said["image"] = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        elif kind == "texts":
            said = {"image": f"img/{number}.png", "question": row["prompt"][0]["content"]}
            said |= {name: f"{name} {number}" for name in ("chosen", "rejected")}
        else:
            said["images"] = [{"bytes": content, "path": "anywhere.png"}]
        rows.append(said)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
        return folder / "pairs.parquet"
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


def config_of(model: Path, source: Path, run: Path, **more: Any) -> RunConfig:
    sections: dict[str, Any] = {
        "model": {"name": str(model), "dtype": "float32"},
        "data": {"train": str(source), "max_length": 128, "eval_fraction": 0.34},
        "training": {
            "batch_size": 2,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "scheduler": "constant",
            "warmup_ratio": 0,
            "reference_store": "off",
        },
        "output": {"dir": str(run), "answers": 0, "report_to": []},
    }
    for name, values in more.items():
        sections[name] = {**sections.get(name, {}), **values}
    return RunConfig.model_validate(sections)


def prepared(config: RunConfig) -> Any:
    name = config.model.name
    return prepare_data(config, load_tokenizer(name), lambda: load_processor(name))


@pytest.mark.parametrize("kind", ["column", "parts", "url", "texts", "parquet"])
@pytest.mark.slow
def test_images_are_read_however_a_file_holds_them(model: Path, tmp_path: Path, kind: str) -> None:
    config = config_of(model, write_pairs(tmp_path, kind), tmp_path / "run")
    train, heldout, dropped = prepared(config)
    assert (len(train), len(heldout), dropped) == (4, 2, 0)
    assert len({*train["image_key"][:], *heldout["image_key"][:]}) == 6
    rows = ImageRows(load_processor(str(model)))
    for row in train:
        pair = rows.pair(row)
        assert pair.images is not None
        lengths = pair.chosen_start, len(pair.chosen) - pair.chosen_start, len(pair.rejected) - pair.rejected_start
        assert lengths == tuple(len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        assert pair.chosen[pair.chosen_start :] == row["chosen_ids"]


@pytest.mark.slow
def test_a_run_trains_on_images_and_resumes_bitwise(model: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, "column")
    more: dict[str, Any] = {"training": {"max_steps": 4, "save_steps": 2}}
    whole = train(config_of(model, data, tmp_path / "whole", **more))
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["status"], summary["form"], summary["images"]) == ("done", "shared_prefix", 6)
    assert summary["heldout_before"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["heldout_after"]["loss"] != summary["heldout_before"]["loss"]
    shown = json.loads((whole / "pairs.json").read_text())["pairs"][0]
    assert shown["prompt"].count("<image>") == 4
    assert shown["lengths"][0] == len(shown["prompt"])

    half = tmp_path / "half"
    more["training"]["max_steps"] = 2
    train(config_of(model, data, half, **more))
    more["training"]["max_steps"] = 4
    train(config_of(model, data, half, **more), resume=True)
    ours, theirs = (load_file(run / "adapter/adapter_model.safetensors") for run in (whole, half))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    (tmp_path / "img/0.png").write_bytes((tmp_path / "img/1.png").read_bytes())
    more["training"]["max_steps"] = 6
    with pytest.raises(RequestError, match="pairs"):
        train(config_of(model, data, half, **more), resume=True)


@pytest.mark.slow
def test_a_run_gives_the_losses_of_a_script(model: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, "parts")
    config = config_of(model, data, tmp_path / "run", data={"eval_fraction": 0}, training={"max_steps": 3})
    run = train(config)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line["loss"] for line in lines if "loss" in line]
    rows = image_pairs(6)
    said = [[{"role": "assistant", "content": f"It is number {number}."}] for number in range(6)]
    rows = rows.remove_columns("chosen").add_column("chosen", said)
    learner, processor = load_model(str(model), dtype="float32", images=True)
    args = training_arguments(config, tmp_path / "script", learner.dtype, "script", {})
    asked = config.adapter
    transformers.set_seed(42)
    peft = lora_config(
        learner, rank=asked.rank, alpha=asked.alpha, dropout=asked.dropout, target_modules=asked.target_modules
    )
    script = DPOTrainer(learner, args=args, train_dataset=rows, processing_class=processor, peft_config=peft)
    script.train()
    expected = [line["loss"] for line in script.state.log_history if "loss" in line]
    assert len(found) == 3
    assert found == pytest.approx(expected, rel=1e-6)


DAMAGES: dict[str, tuple[Any, str]] = {
    "missing": ("img/none.png", "there is no such file"),
    "outside": ("../outside.png", "lies outside of the data's folder"),
    "link": ("img/link.png", "lies outside of the data's folder"),
    "absolute": ("/etc/hostname", "lies outside of the data's folder"),
    "text": ("img/text.png", "is not an image that is read"),
    "bomb": ("img/bomb.png", "pixels, and at most 50,000,000 are unpacked; make it smaller"),
    "url": ("https://example.org/a.png", "is not fetched from the network"),
    "two": (["img/1.png", "img/2.png"], "has 1 places of images, and the row 2 images"),
}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_pairs(folder, "column")
    (tmp_path / "outside.png").write_bytes((folder / "img/0.png").read_bytes())
    (folder / "img/link.png").symlink_to(tmp_path / "outside.png")
    (folder / "img/text.png").write_text("no picture")
    bomb = png(Image.new("1", (1, 1)))
    header = struct.pack(">4sIIBBBBB", b"IHDR", 60_000, 60_000, 1, 0, 0, 0, 0)
    (folder / "img/bomb.png").write_bytes(bomb[:12] + header + struct.pack(">I", zlib.crc32(header)) + bomb[33:])
    return folder


@pytest.mark.parametrize("kind", [*DAMAGES])
@pytest.mark.slow
def test_images_that_cannot_be_read_are_refused_by_row(model: Path, tmp_path: Path, damaged: Path, kind: str) -> None:
    given, reason = DAMAGES[kind]
    lines = (damaged / "pairs.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    row["images"] = given if isinstance(given, list) else [given]
    if kind == "two":
        row["prompt"][0]["content"] = "<image> What is it?"
    lines[2] = json.dumps(row)
    (damaged / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(RequestError) as refused:
        prepared(config_of(model, damaged / "pairs.jsonl", tmp_path / "run"))
    told = str(refused.value)
    assert reason in told
    assert ("row 3" in told or "line 3" in told) and "data.invalid_rows: drop" in told
    keeping = config_of(model, damaged / "pairs.jsonl", tmp_path / "run", data={"invalid_rows": "drop"})
    train_pairs, heldout, _ = prepared(keeping)
    assert len(train_pairs) + len(heldout) == 5
    assert 3 not in [*train_pairs["source_row"][:], *heldout["source_row"][:]]


def test_rows_that_do_not_fit_and_images_that_cannot_be_read_are_told_at_once(
    model: Path, tmp_path: Path, damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (damaged / "pairs.jsonl").read_text().splitlines()
    for number, image in ((1, 5), (3, "img/text.png")):
        lines[number] = json.dumps({**json.loads(lines[number]), "images": [image]})
    (damaged / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(RequestError) as refused:
        prepared(config_of(model, damaged / "pairs.jsonl", tmp_path / "run"))
    misfits, unreadable = refused.value.problems
    assert "line 2 images, item 1 is a number" in misfits
    assert "row 4 image 'img/text.png' is not an image that is read" in unreadable
    assert "dropped" not in caplog.text


def test_a_text_model_refuses_images_or_leaves_them_out_where_asked(tmp_path: Path) -> None:
    config = config_of(tmp_path, write_pairs(tmp_path, "parts"), tmp_path / "run")
    with pytest.raises(RequestError, match="only a model that reads images") as refused:
        prepare_data(config, tiny_tokenizer())
    assert "data.columns: {images: null}" in str(refused.value)
    for kind in ("parts", "column"):
        data = {"columns": {"images": None}}
        config = config_of(tmp_path, write_pairs(tmp_path, kind), tmp_path / "run", data=data)
        pairs, _, _ = prepare_data(config, tiny_tokenizer())
        assert "images" not in pairs.column_names
        assert "image" not in str(pairs["prompt"][:])


@pytest.mark.parametrize("place", ["chosen", "prompt"])
def test_the_mark_of_an_image_without_one_is_refused_by_row(model: Path, tmp_path: Path, place: str) -> None:
    path = write_pairs(tmp_path, "column")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[4][place][0]["content"] = "The <image> of HTML."
    if place == "prompt":
        rows[4]["images"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RequestError, match=rf"row 5 {place} has the text '<image>' and no image there"):
        prepared(config_of(model, path, tmp_path / "run"))
    train_pairs, heldout, dropped = prepared(config_of(model, path, tmp_path / "run", data={"invalid_rows": "drop"}))
    assert (len(train_pairs) + len(heldout), dropped) == (5, 1)


def test_a_prompt_that_fills_the_length_with_its_images_is_told_so(model: Path, tmp_path: Path) -> None:
    config = config_of(model, write_pairs(tmp_path, "column"), tmp_path / "run", data={"max_length": 16})
    with pytest.raises(RequestError, match=r"with its images alone fills max_length.*make the images smaller"):
        prepared(config)


def test_an_image_may_stand_in_a_later_question(model: Path, tmp_path: Path) -> None:
    path = write_pairs(tmp_path, "column")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        first, answer = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes?"}
        row["prompt"] = [first, answer, {"role": "user", "content": "<image> What is it?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_pairs, _, _ = prepared(config_of(model, path, tmp_path / "run"))
    processor = load_processor(str(model))
    pair = ImageRows(processor).pair(train_pairs[0])
    assert processor.tokenizer.decode(pair.chosen[: pair.chosen_start]).count("<image>") == 4
    said = processor.tokenizer.decode(pair.chosen[: pair.chosen_start])
    assert said.index("Hello.") < said.index("Yes?") < said.index("<image>") < said.index("What is it?")


def test_each_file_is_read_once_before_a_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    own = images._file

    def counting(name: str, folder: Path | None) -> bytes:
        read.append(name)
        return own(name, folder)

    monkeypatch.setattr(images, "_file", counting)
    train_pairs, heldout, _ = prepared(config_of(model, write_pairs(tmp_path, "column"), tmp_path / "run"))
    processor = load_processor(str(model))
    args = DPOConfig(str(tmp_path / "out"), max_length=128, use_cpu=True, report_to="none")
    found = prepare_image_pairs(trained_columns(train_pairs), ImageRows(processor), args, "train")
    assert len(read) == len({*read}) == 6
    monkeypatch.setattr(images, "_file", own)
    again = prepare_image_pairs(
        trained_columns(train_pairs).remove_columns([LENGTHS]), ImageRows(processor), args, "train"
    )
    assert found.lengths is not None and again.lengths is not None
    assert found.lengths.tolist() == again.lengths.tolist() and len(heldout) == 2


def test_adapters_on_the_language_model_alone(model: Path) -> None:
    def adapted(targets: Any) -> set[str]:
        learner = load_model(str(model), dtype="float32", images=True)[0]
        peft = add_adapter(learner, rank=2, target_modules=targets)
        return {name for name, module in peft.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)}

    every, language = adapted("all-linear"), adapted("language-linear")
    assert language == {name for name in every if "language_model" in name}
    assert any("vision_tower" in name for name in every) and any("multi_modal_projector" in name for name in every)


@pytest.mark.slow
def test_a_run_that_trains_everything_on_images_keeps_a_copy_as_its_reference(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_pairs(tmp_path, "column")
    config = config_of(model, data, tmp_path / "run", adapter={"method": "full"}, data={"eval_fraction": 0})
    with caplog.at_level("WARNING", "wishbone"):
        run = train(config)
    assert "The model is loaded twice" in caplog.text
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert json.loads((run / "summary.json").read_text())["form"] == "shared_prefix"
    learned = load_model(str(run / "model"), dtype="float32", images=True)[0]
    before = load_model(str(model), dtype="float32", images=True)[0]
    changed = [not torch.equal(a, b) for a, b in zip(learned.parameters(), before.parameters(), strict=True)]
    assert sum(changed) > len(changed) // 2


def test_an_image_in_a_completion_is_refused(model: Path, tmp_path: Path) -> None:
    path = write_pairs(tmp_path, "column")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["chosen"][0]["content"] = [{"type": "image"}, {"type": "text", "text": "this"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RequestError, match="chosen holds an image, and images of prompts alone are trained"):
        prepared(config_of(model, path, tmp_path / "run"))


@pytest.mark.slow
def test_text_alone_trains_a_model_that_reads_images(model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "I do not know."} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(config_of(model, tmp_path / "pairs.jsonl", tmp_path / "run"))
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["form"]) == ("done", "shared_prefix")
    assert "images" not in summary


@pytest.mark.slow
def test_what_a_run_on_images_learned_is_asked_merged_and_loaded(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "wishbone"):
        run = train(config_of(model, write_pairs(tmp_path, "column"), tmp_path / "run"))
    assert "Adapters on 14 layers of the vision tower, too" in caplog.text
    finished = finished_run(run)
    exporter = Exporter(finished)
    exporter.merged(tmp_path / "merged", overwrite=False)
    merged, processor = load_model(str(tmp_path / "merged"), dtype="float32", images=True)
    pair = ImageRows(processor).pair(image_pairs(1)[0])
    assert pair.images is not None
    inputs = {"input_ids": torch.tensor([pair.chosen]), **pair.images.inputs}
    with torch.inference_mode():
        ours, theirs = (some(**inputs).logits for some in (exporter.model.trained, merged))
        with exporter.model.before() as base:
            untrained = base(**inputs).logits
    assert (ours - theirs).abs().mean() < 0.3 * (ours - untrained).abs().mean()  # rounded to 16 bits
    with pytest.raises(RequestError, match=r"--gguf: the run was trained on images.*--merged DIR"):
        exporter.gguf(tmp_path / "x.gguf", "f16")
    answers = answer_before_and_after(
        run, finished.config.model, [question_from_text("What?", exporter.model.tokenizer, None)], max_new_tokens=3
    )
    assert len(answers) == 1
    images = questions_with_images(prepared(finished.config)[0], load_processor(str(model)), 2)
    assert [question.prompt for question in images] == [[{"role": "user", "content": "<image>What is it?"}]] * 2
    about = answer_before_and_after(run, finished.config.model, images, max_new_tokens=3)
    with torch.inference_mode():
        for question, answer in zip(images, about, strict=True):
            assert question.images is not None
            seen = {"input_ids": torch.tensor([question.ids]), **question.images.inputs}
            first = exporter.model.trained(**seen).logits[0, -1].argmax()
            assert answer.after.startswith(exporter.model.tokenizer.decode([first]).strip()[:1])


@pytest.mark.slow
def test_a_run_on_images_is_measured_on_other_pairs_with_images(model: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, "column")
    lines = data.read_text().splitlines()
    (tmp_path / "held.jsonl").write_text("\n".join(lines[3:]) + "\n")
    config = config_of(model, data, tmp_path / "run", data={"eval": str(tmp_path / "held.jsonl"), "eval_fraction": 0})
    run = train(config)
    figures = json.loads((run / "summary.json").read_text())["heldout_after"]
    found = evaluate(finished_run(run), str(tmp_path / "held.jsonl"), split="train", limit=None)
    assert found.pairs == 3
    assert found.margin.value == pytest.approx(figures["rewards/margins"], abs=1e-5) != 0


def test_check_counts_images_and_names_what_cannot_be_read(model: Path, damaged: Path) -> None:
    path = damaged / "pairs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, bad in zip(rows, (["img/none.png"], ["img/bomb.png"], ["../outside.png"]), strict=False):
        row["images"] = bad
    same = {**rows[4], "images": ["img/5.png"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, same, rows[4]]))
    for name in (None, str(model)):
        request = CheckRequest(data=[(str(path), "train")], model=name)
        found = examine(request.readers(), model=request.view())
        named = {finding.name: finding for finding in found.findings}
        assert named["image"].count == 3
        assert [place.partition(":")[0] for place in named["image"].details] == ["line 1", "line 2", "line 3"]
        assert named["duplicate"].count == 1  # the same words about another image are another pair
        assert (found.pictures.pairs, found.pictures.images, found.pictures.largest) == (8, 5, (16, 16))
    assert write_cleaned(found, damaged / "clean.jsonl")[0] == 4
    clean = json.loads((damaged / "clean.jsonl").read_text().splitlines()[0])
    assert clean["images"] == ["img/3.png"]
    assert (
        found.spreads.sides["prompt"].longest
        == ImageRows(load_processor(str(model))).lengths({**clean, "images": [str(damaged / "img/3.png")]})[0]
    )


def test_a_plan_counts_tokens_of_images(model: Path, tmp_path: Path) -> None:
    data = DataConfig(train=str(write_pairs(tmp_path, "column")))
    found = measured_lengths(data, model)
    assert "and 4 an image" in found.source
    assert found.image_tokens == 4 * len(found) == 24
    (model_without := tmp_path / "elsewhere").mkdir()
    assert "1,000 tokens an image" in measured_lengths(data, model_without).source
