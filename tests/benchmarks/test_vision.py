"""Pairs about synthetic images, as trainers and models of every shape take them, and the table of what was measured."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.results import Results
from benchmarks.harness.vision import SHAPES, RandomPixels, image_rows, random_vision_model
from benchmarks.harness.workloads import Lengths
from benchmarks.rendering.image_tables import images_table
from wishbone.trainer.image_rows import ImageRows

TINY = [name for name in SHAPES if name.startswith("tiny")]


@pytest.mark.parametrize("name", TINY)
def test_images_of_a_pair_fit_their_places_and_the_model(name: str):
    shape = SHAPES[name]
    rows = image_rows(shape, [Lengths(5, 4, 3)], 2)
    processor = RandomPixels(shape)
    pair = ImageRows(processor).pair(rows[0])
    mark = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert pair.chosen.count(mark) == pair.rejected.count(mark) == 2 * shape.tokens
    assert pair.images is not None
    assert pair.images.inputs["pixel_values"].shape == (2 * shape.pixels[0], *shape.pixels[1:])
    model = random_vision_model(shape, torch.float32, torch.device("cpu"))
    made = processor(images=[rows[0]["images"]], text=[rows[0]["prompt"]], return_tensors="pt")
    assert model(**made).logits.shape == (1, len(made["input_ids"][0]), shape.text["vocab_size"])


def test_the_shapes_of_published_models_have_the_tokens_that_their_patches_make():
    qwen, gemma = SHAPES["qwen3-vl-4b"], SHAPES["gemma-3-4b"]
    assert (
        qwen.grid[1] * qwen.grid[2]
        == qwen.pixels[0]
        == qwen.tokens * qwen.config().vision_config.spatial_merge_size ** 2
    )
    assert qwen.images * qwen.tokens == gemma.images * gemma.tokens == 1024
    assert (gemma.pixels[2] // gemma.config().vision_config.patch_size) ** 2 == 16 * gemma.tokens


def test_the_table_shows_what_was_measured_and_what_was_not():
    results = Results()
    results.begin_call("abc")
    row = {"kind": "images", "size": None, "case": "gemma-3-4b"}
    measured = {"pairs_per_s": 8.0, "pairs_a_step": 8, "peak_gib": 9.5, "weights_gib": 8.25, "losses": [0.6931]}
    results.add({**row, "system": "trl-bf16", "status": "failed", "reason": "no result within 60 s", "phase": "step 1"})
    results.add({**row, "system": "wishbone-bf16", "status": "ok", **measured})
    work = {"gpu_seconds": 0.5, "module_gpu_seconds": 0.1}
    results.add({**row, "system": "wishbone-nf4", "status": "ok", **measured, "looked_at": work})
    table = images_table(results)
    assert table.rows[0] == ("trl-bf16", "gemma-3-4b", "failed", "", "", "", "", "")
    assert table.rows[1][2:] == ("8.00", "9.5", "8.2", "", "", "0.6931")
    assert table.rows[2][5:7] == ("50%", "20%")
    assert "no result within 60 s" in table.notes[0]
