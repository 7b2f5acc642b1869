"""Vision-language models with random weights in the shape of real ones, pairs about made-up images, and a processor.

A picture's pixels are random numbers that are made once, because a processor's own work (resizing on the host) is the
same for every trainer and would hide what is measured. Text has one token a word, as in `random_model`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, BatchFeature, ProcessorMixin

from benchmarks.harness.random_model import word_tokenizer
from benchmarks.harness.workloads import Lengths, texts

MARKS = {"image_token": "<image>", "begin": "<image begins>", "end": "<image ends>", "video_token": "<video>"}
"""Tokens behind the words of a vocabulary."""


@dataclass(frozen=True)
class Shape:
    """A vision-language model.

    Attributes:
        kind: its model type in transformers.
        text, vision: sizes of its two parts.
        whole: further settings of its configuration.
        tokens: tokens of an image.
        images: images a pair, so that a pair has about 1,000 tokens of them.
        pixels: shape of an image's pixels, as the model takes them.
        grid: time, height and width of an image in patches where the model takes them, else nothing.
        tower: the name of the module for images in the model.
    """

    kind: str
    text: dict[str, Any]
    vision: dict[str, Any]
    whole: dict[str, Any]
    tokens: int
    images: int
    pixels: tuple[int, ...]
    tower: str
    grid: tuple[int, ...] = ()

    def config(self) -> Any:
        """Return the model's configuration."""
        vocabulary = self.text["vocab_size"]
        image, begin, end, video = range(vocabulary - len(MARKS), vocabulary)
        names = {
            "qwen3_vl": ("image_token_id", "vision_start_token_id", "vision_end_token_id", "video_token_id"),
            "gemma3": ("image_token_index", "boi_token_index", "eoi_token_index"),
        }[self.kind]
        ids = dict(zip(names, (image, begin, end, video), strict=False))
        text = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 2, **self.text}
        return CONFIG_MAPPING[self.kind](text_config=text, vision_config=self.vision, **self.whole, **ids)


SHAPES = {
    "qwen3-vl-4b": Shape(
        "qwen3_vl",
        {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
                             "mrope_interleaved": True}},
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560,
         "deepstack_visual_indexes": [5, 11, 17]},
        {"tie_word_embeddings": True},
        tokens=1024, images=1, pixels=(4096, 3 * 2 * 16 * 16), tower="visual", grid=(1, 64, 64),
    ),
    "gemma-3-4b": Shape(
        "gemma3",
        {"vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 1024},
        {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
         "num_attention_heads": 16, "image_size": 896, "patch_size": 14, "vision_use_head": False},
        {"mm_tokens_per_image": 256},
        tokens=256, images=4, pixels=(1, 3, 896, 896), tower="vision_tower",
    ),
    "tiny-qwen3-vl": Shape(
        "qwen3_vl",
        {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2],
                             "mrope_interleaved": True}},
        {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64,
         "patch_size": 4, "deepstack_visual_indexes": [0]},
        {"tie_word_embeddings": True},
        tokens=4, images=1, pixels=(16, 3 * 2 * 4 * 4), tower="visual", grid=(1, 4, 4),
    ),
    "tiny-gemma-3": Shape(
        "gemma3",
        {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8},
        {"model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "image_size": 16, "patch_size": 4, "vision_use_head": False},
        {"mm_tokens_per_image": 4},
        tokens=4, images=4, pixels=(1, 3, 16, 16), tower="vision_tower",
    ),
}  # fmt: skip
"""Published models, with the images that give a pair some 1,000 tokens, and tiny ones."""


def random_vision_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a model on `device`, with the same weights every time on one kind of device."""
    torch.manual_seed(0)
    with device:
        return AutoModelForImageTextToText.from_config(shape.config(), dtype=dtype)


def image_rows(shape: Shape, lengths: list[Lengths], images: int) -> list[dict[str, Any]]:
    """Return rows of random words, each with so many images before its prompt."""
    picture = Image.new("RGB", (8, 8), "orange")
    rows = texts(lengths, shape.text["vocab_size"] - len(MARKS))
    return [{**row, "images": [picture] * images, "prompt": "<image> " * images + row["prompt"]} for row in rows]


class _Settings:
    """In the place of an image processor: what pixels are made by."""

    def to_json_string(self) -> str:
        return "random numbers"


@dataclass(eq=False)
class RandomPixels(ProcessorMixin):  # type: ignore[misc]
    """A processor that shows every image as the same random pixels.

    Args:
        shape: of the model.
    """

    shape: Shape
    image_token: str = MARKS["image_token"]
    image_processor: _Settings = field(default_factory=_Settings)

    def __post_init__(self) -> None:
        self.tokenizer = word_tokenizer(self.shape.text["vocab_size"] - len(MARKS))
        self.tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS.values()]})
        self.chat_template = self.tokenizer.chat_template
        self._pixels = torch.randn(self.shape.pixels, generator=torch.Generator().manual_seed(0))

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> BatchFeature:
        """Return what a model takes of texts and of the images that they name."""
        shape = self.shape
        placeholders = " ".join(["", MARKS["begin"], *[self.image_token] * shape.tokens, MARKS["end"], ""])
        made = self.tokenizer([one.replace(self.image_token, placeholders) for one in text], **options)
        mark = self.tokenizer.convert_tokens_to_ids(self.image_token)
        name = "mm_token_type_ids" if shape.grid else "token_type_ids"
        found = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
        found[name] = (made["input_ids"] == mark).long()
        count = sum(map(len, images or ()))
        if count:
            found["pixel_values"] = self._pixels.repeat(count, *[1] * (len(shape.pixels) - 1))
        if count and shape.grid:
            found["image_grid_thw"] = torch.tensor([shape.grid] * count)
        return BatchFeature(found)
