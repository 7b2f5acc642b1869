"""What a vision tower adds to a plan, against the models that transformers builds from the same sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wishbone.config.schema import RunConfig
from wishbone.planning.gpus import find_gpu
from wishbone.planning.lengths import PairLengths, measured_lengths, tower_in
from wishbone.planning.memory import GIB, MemoryPlan
from wishbone.planning.model_shape import read_shape
from wishbone.planning.run_plan import Target, gpu_machine, plan_run
from wishbone.planning.vision_tower import Tower, read_tower

TEXT = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
TEXT |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
QWEN: dict[str, Any] = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16}
QWEN |= {"spatial_merge_size": 2, "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17]}
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3_vl": {"vision_config": QWEN},
    "gemma3": {
        "vision_config": {**SIGLIP, "model_type": "siglip_vision_model", "image_size": 896, "patch_size": 14},
        "mm_tokens_per_image": 256,
    },
    "llava": {"vision_config": {**CLIP, "num_attention_heads": 16, "image_size": 336, "patch_size": 14}},
    "smolvlm": {"vision_config": {**SIGLIP, "image_size": 384, "patch_size": 14}, "scale_factor": 3},
}
TOKENS = {"qwen3_vl": None, "gemma3": 256, "llava": 576, "smolvlm": None}
PATCHES = {"qwen3_vl": 4, "gemma3": 16, "llava": 1, "smolvlm": 9}


def config(kind: str, **text: Any) -> dict[str, Any]:
    return {"model_type": kind, "text_config": {**TEXT, **text}, **SHAPES[kind]}


def tower(kind: str) -> Tower:
    found = read_tower(config(kind))
    assert found is not None
    return found


@pytest.mark.parametrize("kind", SHAPES)
def test_tokens_and_patches_of_an_image(kind: str) -> None:
    found = tower(kind)
    assert (found.tokens, found.patches_a_token) == (TOKENS[kind], PATCHES[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_weights_are_those_of_the_model(kind: str) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    text: dict[str, Any] = {
        "num_hidden_layers": 1,
        "vocab_size": 300,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if kind in ("llava", "smolvlm"):
        text["model_type"] = "llama"
    described = config(kind, **text)
    with torch.device("meta"):
        made = CONFIG_MAPPING[kind](**{name: one for name, one in described.items() if name != "model_type"})
        model = AutoModelForImageTextToText.from_config(made)
    of_text = {id(p) for part in (model.get_decoder(), model.get_output_embeddings()) for p in part.parameters()}
    own = sum(p.numel() for p in model.parameters() if id(p) not in of_text)
    assert sum(inputs * outputs for inputs, outputs in tower(kind).matrices) == pytest.approx(own, rel=0.06)


def test_no_tower_where_none_is_described() -> None:
    assert read_tower({"model_type": "llama", **TEXT}) is None
    assert read_tower({**config("qwen3_vl"), "vision_config": {"hidden_size": 4}}) is None
    assert read_tower({**config("qwen3_vl"), "vision_config": "a tower"}) is None


def test_memory_grows_with_images_and_with_what_is_trained() -> None:
    of, plan = tower("qwen3_vl"), MemoryPlan("bf16", 4096)
    weights = of.bytes(plan, 0, learns=False)
    assert weights == pytest.approx(0.83e9, rel=0.05)
    assert of.bytes(replace(plan, weights="fp8"), 0, learns=False) == weights / 2
    assert of.bytes(replace(plan, reference="separate", method="full"), 0, learns=False) == 2 * weights
    frozen, learns = (of.bytes(plan, 1000, learns=on) - of.bytes(plan, 0, learns=on) for on in (False, True))
    assert 0 < frozen < learns
    assert of.bytes(plan, 0, learns=True) > weights + 16 * 4 * 2 * 24 * 8 * 1024


@pytest.mark.parametrize(("kind", "size"), [("qwen3_vl", (24, 16)), ("gemma3", (16, 16))])
def test_operations_are_those_of_the_tower(kind: str, size: tuple[int, int]) -> None:
    import torch
    from tiny_vision import picture, vision_family
    from torch.utils.flop_counter import FlopCounterMode

    processor, model = vision_family(kind)
    model.set_attn_implementation("eager")
    mark = processor.image_token if kind != "gemma3" else processor.boi_token
    made = processor(images=[[picture(*size, seed=0)] * 2], text=[f"{mark} {mark}"], return_tensors="pt")
    inputs = {name: made[name] for name in ("pixel_values", "image_grid_thw") if name in made}
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        features = model.base_model.get_image_features(**inputs)
    tokens = sum(map(len, features.pooler_output))
    found = read_tower(model.config.to_dict())
    assert found is not None
    patches = tokens * found.patches_a_token
    known = replace(found, tokens=tokens // 2)
    pixels = 3 * model.config.vision_config.patch_size**2 * (2 if kind == "qwen3_vl" else 1)
    embedded = 2 * patches * found.hidden * pixels
    assert known.forward_flop(tokens) + embedded == pytest.approx(counted.get_total_flops(), rel=0.06)


def test_layers_with_windows_attend_to_next_to_nothing() -> None:
    windows = read_tower({**config("qwen3_vl"), "vision_config": {**QWEN, "fullatt_block_indexes": [7, 15, 23]}})
    assert windows is not None and windows.attending == 3
    of_attention = 4 * 1024 * 4000 * 4000
    assert tower("qwen3_vl").forward_flop(1000) - windows.forward_flop(1000) == pytest.approx(21 * of_attention)


def planned(images: int, gpu_name: str = "RTX 4090", **settings: Any) -> Any:
    prompt, chosen, rejected = (np.full(64, tokens) for tokens in (1064, 100, 100))
    lengths = PairLengths(prompt, chosen, rejected, "given", images * 1000)
    described = config("qwen3_vl", tie_word_embeddings=True)
    gpu = find_gpu(gpu_name)
    run = RunConfig.model_validate({"model": {"name": "x"}, "data": {"train": "y"}, "adapter": settings})
    target = Target(read_shape(described, "x"), lengths, gpu_machine(gpu), gpu, tower=read_tower(described))
    return plan_run(run, target)


def test_a_plan_leaves_room_for_the_tower_where_pairs_have_images() -> None:
    text, images, frozen = planned(0), planned(64), planned(64, target_modules="language-linear")
    assert "vision tower" not in text.rows.memory.items
    taken = images.rows.memory.items["vision tower"]
    assert taken > 1.0 * GIB
    assert frozen.rows.memory.items["vision tower"] < taken
    assert images.fits and images.rows.memory.total <= images.machine.limit
    assert images.longest_sequence < text.longest_sequence
    full = planned(64, method="full")
    assert full.rows.memory.items["reference"] > 7 * GIB


def test_a_step_has_the_time_of_the_tower() -> None:
    text, trained = planned(0, "H200"), planned(64, "H200")  # which keeps all activations either way
    frozen = planned(64, "H200", target_modules="language-linear")
    once = frozen.seconds - text.seconds
    flop = tower("qwen3_vl").forward_flop(text.step_tokens * 1000 / 1264)
    assert once == pytest.approx(0.114 * flop / 34.8e12, rel=0.05)  # benchmarks/results/images-h200.json
    assert trained.seconds - text.seconds == pytest.approx(4 * once, rel=1e-2)


def test_an_estimate_leaves_no_pair_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("llava")))
    row = {"images": ["a.png"], "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    data = RunConfig.model_validate(
        {"model": {"name": "x"}, "data": {"train": str(tmp_path / "pairs.jsonl"), "max_length": 512}}
    ).data
    found = measured_lengths(data, None)
    assert len(found) == 1 and found.prompt.tolist() == [511]
    assert 490 < found.image_tokens < 511
    known = tower_in(tmp_path)
    assert known is not None and known.tokens == 576
