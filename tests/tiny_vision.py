"""A tiny random vision-language model (LLaVA's layout), its processor, and pairs with an image."""

from __future__ import annotations

import random
from typing import Any

import torch
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as PILImage
from tiny import tiny_tokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Processor,
    Idefics3Processor,
    InternVLProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    Qwen2_5_VLProcessor,
    Qwen3VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

PIXELS, PATCH = 16, 8
IMAGE = "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_vision_processor() -> LlavaProcessor:
    """Return a processor of 16 x 16 pixels, four patches of which stand for an image in the text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.chat_template = CHAT_TEMPLATE
    images = CLIPImageProcessorPil(
        size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}, do_convert_rgb=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def tiny_vision_model(processor: LlavaProcessor, seed: int = 0) -> LlavaForConditionalGeneration:
    """Return a model that goes with the processor, the same at every call."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape, image_size=PIXELS, patch_size=PATCH, projection_dim=32),
        text_config=LlamaConfig(**shape, vocab_size=len(tokens), max_position_embeddings=256),
        image_token_index=tokens.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for weight in model.parameters():
            if weight.ndim >= 2:
                torch.nn.init.normal_(weight, std=1.5 / weight.shape[-1] ** 0.5)
    return model.eval()


def image_pairs(count: int, seed: int = 0) -> Dataset:
    """Return chat pairs about random images."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        pixels = bytes(rng.randrange(256) for _ in range(3 * PIXELS * PIXELS))
        words = [rng.choice(["red", "green", "a cat", "a wall", "rain"]) for _ in range(8)]
        rows.append(
            {
                "images": [PILImage.frombytes("RGB", (PIXELS, PIXELS), pixels)],
                "prompt": [{"role": "user", "content": "What is it?"}],
                "chosen": [{"role": "assistant", "content": " ".join(words[: rng.randint(1, 8)])}],
                "rejected": [{"role": "assistant", "content": " ".join(words[: rng.randint(1, 8)])}],
            }
        )
    message = [{"role": Value("string"), "content": Value("string")}]
    features = {"images": Sequence(Image()), "prompt": message, "chosen": message, "rejected": message}
    return Dataset.from_list(rows, features=Features(features))


def text_sizes(tokens: Any, **more: Any) -> dict[str, Any]:
    """Return sizes of a tiny text model with the tokenizer's vocabulary."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(tokens),
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        **more,
    }


def _tokenizer(**marks: str) -> Any:
    """A tiny tokenizer with a model's own tokens, found as its attributes where the family looks for them there."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*marks.values()]})
    for name, mark in marks.items():
        setattr(tokenizer, name, mark)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(mark))
    return tokenizer


def _template(mark: str) -> str:
    return CHAT_TEMPLATE.replace(IMAGE, mark)


def _siglip_sizes(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {**sizes, "image_size": PIXELS, "patch_size": PATCH, **more}


def _qwen(kind: str) -> tuple[Any, Any]:
    tokens = _tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 8 * 8 * 2, "longest_edge": 24 * 24}, temporal_patch_size=2
    )
    template = _template("<|vision_start|><|image_pad|><|vision_end|>")
    processor = _without_videos(Qwen2_5_VLProcessor if kind == "qwen2_5_vl" else Qwen3VLProcessor)
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 32,
    }
    vision |= {"patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    more: dict[str, Any] = {}
    if kind == "qwen2_5_vl":
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    else:
        vision |= {"num_position_embeddings": 64}
        rope |= {"mrope_interleaved": True}
    if kind == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0, 1]}
    if kind == "qwen3_5":
        rope |= {"partial_rotary_factor": 1.0}
        more = {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        }
    config = CONFIG_MAPPING[kind](
        text_config=text_sizes(tokens, rope_parameters=rope, **more),
        vision_config=vision,
        **{f"{name}_id": getattr(tokens, f"{name}_id") for name in ("image_token", "video_token")},
        **{f"vision_{end}_token_id": getattr(tokens, f"vision_{end}_token_id") for end in ("start", "end")},
    )
    return processor(images, tokens, None, chat_template=template), config


def _without_videos(processor: Any) -> Any:
    """Return a class of processors whose processor of videos, which needs torchvision, may be missing."""

    def check_argument_for_proper_class(self: Any, name: str, argument: Any) -> None:
        pass

    check = {"check_argument_for_proper_class": check_argument_for_proper_class}
    return type(processor.__name__, (processor,), check)


def _idefics3(kind: str) -> tuple[Any, Any]:
    tokens = _tokenizer()
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * PIXELS}, max_image_size={"longest_edge": PIXELS}, do_image_splitting=True
    )
    processor = Idefics3Processor(images, tokens, image_seq_len=1, chat_template=_template(IMAGE))
    config = CONFIG_MAPPING[kind](
        vision_config=_siglip_sizes(),
        text_config={"model_type": "llama", **text_sizes(tokens)},
        scale_factor=2,
        image_token_id=tokens.convert_tokens_to_ids(IMAGE),
        pad_token_id=0,
    )
    return processor, config


def _llava_next(kind: str) -> tuple[Any, Any]:
    tokens = _tokenizer(image_token=IMAGE)
    grid = [[PIXELS, 2 * PIXELS], [2 * PIXELS, PIXELS], [2 * PIXELS, 2 * PIXELS]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": PIXELS},
        crop_size={"height": PIXELS, "width": PIXELS},
        image_grid_pinpoints=grid,
    )
    processor = LlavaNextProcessor(
        images,
        tokens,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=_template(IMAGE),
        num_additional_image_tokens=1,
    )
    config = CONFIG_MAPPING[kind](
        vision_config=CLIPVisionConfig(**_siglip_sizes(), projection_dim=32),
        text_config=LlamaConfig(**text_sizes(tokens)),
        image_token_index=tokens.image_token_id,
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
    )
    return processor, config


def _gemma3(kind: str) -> tuple[Any, Any]:
    tokens = _tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    images = Gemma3ImageProcessorPil(size={"height": PIXELS, "width": PIXELS})
    processor = Gemma3Processor(images, tokens, chat_template=_template("<start_of_image>"), image_seq_length=4)
    text = text_sizes(tokens, sliding_window=6, query_pre_attn_scalar=16)
    config = CONFIG_MAPPING[kind](
        vision_config={"model_type": "siglip_vision_model", **_siglip_sizes(), "vision_use_head": False},
        text_config={**text, "layer_types": ["sliding_attention", "full_attention"]},
        mm_tokens_per_image=4,
        boi_token_index=tokens.boi_token_id,
        eoi_token_index=tokens.eoi_token_id,
        image_token_index=tokens.image_token_id,
    )
    return processor, config


def _internvl(kind: str) -> tuple[Any, Any]:
    tokens = _tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    images = GotOcr2ImageProcessorPil(
        size={"height": PIXELS, "width": PIXELS}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = _without_videos(InternVLProcessor)(
        images, tokens, None, image_seq_length=1, chat_template=_template("<IMG_CONTEXT>")
    )
    config = CONFIG_MAPPING[kind](
        vision_config={**_siglip_sizes(), "image_size": [PIXELS, PIXELS], "patch_size": [PATCH, PATCH]},
        text_config={"model_type": "qwen2", **text_sizes(tokens)},
        image_token_id=tokens.context_image_token_id,
        image_seq_length=1,
    )
    return processor, config


class _Pixtral:
    """In the place of `PixtralProcessor`, which needs torchvision: an image is its rows of tokens, each with an end."""

    image_token = "[IMG]"

    def __init__(self, images: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = images, tokenizer
        tokenizer.chat_template = _template("[IMG]")
        self.apply_chat_template = tokenizer.apply_chat_template

    def __call__(self, images: Any, text: list[str], return_tensors: str, add_special_tokens: bool) -> Any:
        made = {} if images is None else dict(self.image_processor(images, return_tensors=return_tensors))
        written, *between = text[0].split("[IMG]")
        for (height, width), after in zip(made.get("image_sizes", torch.empty(0, 2)).tolist(), between, strict=True):
            rows, columns = height // (2 * PATCH), width // (2 * PATCH)
            grid = ("[IMG]" * columns + "[IMG_BREAK]") * rows
            written += grid.removesuffix("[IMG_BREAK]") + "[IMG_END]" + after
        return {**self.tokenizer([written], return_tensors=return_tensors, add_special_tokens=False), **made}


def _mistral3(kind: str) -> tuple[Any, Any]:
    tokens = _tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    images = PixtralImageProcessorPil(size={"longest_edge": 2 * PIXELS}, patch_size={"height": PATCH, "width": PATCH})
    processor = _Pixtral(images, tokens)
    config = CONFIG_MAPPING[kind](
        vision_config={"model_type": "pixtral", **_siglip_sizes(), "head_dim": 8},
        text_config={"model_type": "mistral", **text_sizes(tokens), "sliding_window": None},
        image_token_index=tokens.image_token_id,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return processor, config


class _Gemma4:
    """In the place of `Gemma4Processor`, which needs torchvision for its processor of videos."""

    image_token = "<image_soft_token>"

    def __init__(self, images: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = images, tokenizer
        tokenizer.chat_template = _template(self.image_token)
        self.apply_chat_template = tokenizer.apply_chat_template

    def __call__(self, images: Any, text: list[str], return_tensors: str, add_special_tokens: bool) -> Any:
        made = {} if images is None else dict(self.image_processor(images, return_tensors=return_tensors))
        written, *between = text[0].split(self.image_token)
        for count, after in zip(made.pop("num_soft_tokens_per_image", []), between, strict=True):
            written += f"<start_of_image>{self.image_token * int(count)}<end_of_image>{after}"
        tokens = self.tokenizer([written], return_tensors=return_tensors, add_special_tokens=add_special_tokens)
        kinds = (tokens["input_ids"] == self.tokenizer.image_token_id).long()
        return {**tokens, **made, "mm_token_type_ids": kinds}


def _gemma4(kind: str) -> tuple[Any, Any]:
    tokens = _tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    images = Gemma4ImageProcessorPil(max_soft_tokens=70, patch_size=4, pooling_kernel_size=2)
    text = text_sizes(
        tokens,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=6,
        global_head_dim=8,
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=len(tokens),
        use_bidirectional_attention="vision",
    )
    vision = {"patch_size": 4, "pooling_kernel_size": 2, "head_dim": 8, "position_embedding_size": 64}
    config = CONFIG_MAPPING[kind](
        vision_config={**_siglip_sizes(), **vision, "num_key_value_heads": 4},
        text_config=text,
        audio_config=None,
        boi_token_id=tokens.boi_token_id,
        eoi_token_id=tokens.eoi_token_id,
        image_token_id=tokens.image_token_id,
    )
    return _Gemma4(images, tokens), config


VISION_FAMILIES = {
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_5": _qwen,
    "llava_next": _llava_next,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "internvl": _internvl,
    "mistral3": _mistral3,
}
"""Families of vision-language models, beside LLaVA, and what makes their processor and configuration."""


def vision_family(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Any, PreTrainedModel]:
    """Return processor and model of a family; weights are drawn large, the same at every call."""
    if kind == "llava":
        processor = tiny_vision_processor()
        return processor, tiny_vision_model(processor, seed).to(dtype)
    processor, config = VISION_FAMILIES[kind](kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        for weight in model.parameters():
            if weight.ndim >= 2:
                torch.nn.init.normal_(weight, std=1.5 / weight.shape[-1] ** 0.5)
    return processor, model.to(dtype).eval()


def picture(width: int, height: int, seed: int) -> PILImage.Image:
    """Return a random image."""
    return PILImage.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


def several_images(count: int, seed: int = 0) -> Dataset:
    """Return chat pairs with no, one and two images of several sizes."""
    rng = random.Random(seed)
    rows = []
    for row in range(count):
        sizes = [(rng.choice([16, 24, 40]), rng.choice([16, 24, 32])) for _ in range((row + seed) % 3)]
        words = [rng.choice(["red", "green", "a cat", "a wall", "rain"]) for _ in range(8)]
        rows.append(
            {
                "images": [picture(*size, seed=seed + row) for size in sizes],
                "prompt": [{"role": "user", "content": rng.choice(["What is it?", "Say what you see."])}],
                "chosen": [{"role": "assistant", "content": " ".join(words[: rng.randint(1, 8)])}],
                "rejected": [{"role": "assistant", "content": " ".join(words[: rng.randint(1, 8)])}],
            }
        )
    message = [{"role": Value("string"), "content": Value("string")}]
    features = {"images": Sequence(Image()), "prompt": message, "chosen": message, "rejected": message}
    return Dataset.from_list(rows, features=Features(features))
