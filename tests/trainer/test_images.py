"""Images in the stem through `DPOTrainer`: TRL is the judge; what cannot be trained is dropped, refused or TRL's."""

from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Image
from peft import LoraConfig

from trainer.preference_runs import losses
from trainer.side_by_side import assert_on_step, assert_same, learned, trained, trainer
from wishbone.errors import RequestError

pytest.importorskip("PIL")

from tiny_vision import picture, several_images, vision_family

SIDES = {"chosen": [{"role": "assistant", "content": "A cat."}], "rejected": [{"role": "assistant", "content": "No."}]}


def makers(
    kind: str, *, data: Any = lambda: several_images(12), target: str = r".*\.(q_proj|v_proj|qkv)"
) -> dict[str, Any]:
    return {
        "model": lambda: vision_family(kind)[1],
        "data": data,
        "peft": lambda: LoraConfig(r=4, target_modules=target),
        "further": lambda: {"processing_class": vision_family(kind)[0]},
    }


def row(**fields: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": "What is it?"}], **SIDES, **fields}


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "idefics3", "gemma3"])
def test_rows_with_no_one_and_two_images(kind: str, tmp_path: Path) -> None:
    # Adam makes steps of rounding where a gradient is nothing else, as in Qwen2.5-VL's tower in float32.
    layers = r".*language_model.*\.(q_proj|v_proj)" if kind == "qwen2_5_vl" else r".*\.(q_proj|v_proj|qkv)"
    theirs, ours = trained(tmp_path, {"max_length": 256}, **makers(kind, target=layers))
    assert_on_step(ours)
    assert_same(theirs, ours)


def test_prompts_that_fill_the_length_are_dropped_and_images_never_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "wishbone"):
        ours = trainer("ours", tmp_path, {"max_length": 32, "max_steps": 1}, **makers("qwen3_vl"))
    kept = len(ours.train_dataset)
    assert 0 < kept < 12
    assert (
        f"{12 - kept} of 12 train pairs are dropped: the prompt with its images has more than 31 tokens" in caplog.text
    )
    ours.train()
    assert_on_step(ours)
    with pytest.raises(RequestError, match=r"every train pair would be dropped \(12\)"):
        trainer("ours", tmp_path, {"max_length": 8}, **makers("qwen3_vl"))


@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "image", "image": "a.png"}])
def test_an_image_in_a_completion_is_refused_because_trl_cannot_train_it_either(
    tmp_path: Path, part: dict[str, str]
) -> None:
    chosen = [{"role": "assistant", "content": [part, {"type": "text", "text": "this"}]}]
    rows = [row(images=[picture(16, 16, seed=1)], chosen=chosen, rejected=chosen)] * 4
    made = makers("llava", data=lambda: Dataset.from_list(rows))
    with pytest.raises(RequestError, match=r"a completion holds an image \(row 1\).*leave the row out"):
        trainer("ours", tmp_path, **made)
    theirs = trainer("theirs", tmp_path, **made)
    with pytest.raises(ValueError, match=r"not match|no images were passed|to be truncated"):
        theirs.train()


def test_images_as_bytes_paths_and_data_urls_are_those_that_are_opened(tmp_path: Path) -> None:
    import base64

    buffer = BytesIO()
    picture(24, 16, seed=1).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    written = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    cells = [{"bytes": buffer.getvalue(), "path": None}, {"bytes": None, "path": str(tmp_path / "a.png")}]
    alike = [Dataset.from_list([row(images=[cell])] * 4).cast_column("images", [Image()]) for cell in cells] + [
        Dataset.from_list([row(image=cell)] * 4) for cell in (str(tmp_path / "a.png"), written)
    ]
    runs = []
    for number, data in enumerate(alike):
        ours = trainer("ours", tmp_path / str(number), {"max_steps": 1}, **makers("llava", data=lambda data=data: data))
        ours.train()
        assert_on_step(ours)
        runs.append((losses(ours), ours.state.log_history[0]["logps/chosen"]))
    assert all(run == runs[0] for run in runs)


def test_images_that_cannot_be_read_are_refused_with_their_rows(tmp_path: Path) -> None:
    data = [
        row(image=str(tmp_path / "none.png")),
        row(image="https://example.com/cat.png"),
        row(image="data:image/png;base64,QUJD"),
    ]
    with pytest.raises(RequestError) as refused:
        trainer("ours", tmp_path, **makers("llava", data=lambda: Dataset.from_list(data)))
    missing, remote, broken = refused.value.problems
    assert "train data, row 1" in missing and "there is no such file" in missing
    assert "row 2" in remote and "not fetched from the network" in remote
    assert "row 3" in broken and "is not an image that is read" in broken


def test_images_and_placeholders_that_do_not_match_are_refused(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]}]
    data = Dataset.from_list([row(prompt=asked, images=[{"bytes": None, "path": None}] * 2)])
    with pytest.raises(RequestError, match="row 1"):
        trainer("ours", tmp_path, **makers("llava", data=lambda: data))


def test_the_reference_store_knows_images_apart(tmp_path: Path) -> None:
    def pairs(seed: int) -> Dataset:
        return Dataset.from_list([row(images=[picture(16, 16, seed + number)]) for number in range(4)])

    for seed, reused in ((0, 0), (0, 2), (100, 0)):
        made = makers("llava", data=lambda seed=seed: pairs(seed))
        ours = trainer("ours", tmp_path / "run", {"max_steps": 1, "gradient_accumulation_steps": 1}, **made)
        ours.train()
        assert ours.reference_counts()["reused"] == reused


def test_a_run_that_continues_ends_with_the_same_weights(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_length": 256}
    whole = trainer("ours", tmp_path, options, **makers("llava"))
    whole.train()
    again = trainer("ours", tmp_path, options, **makers("llava"))
    again.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-2"))
    assert torch.equal(learned(again), learned(whole))
