"""The stand-in vision models: each family's configuration, tokens and processor, made small.

Two-layer vision towers read images of about 56 pixels, so an image becomes a handful of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from stand_in_families import EXPERTS, SLIDING_AND_FULL, TEXT, Family
from transformers import PreTrainedTokenizerFast

SEEING_TEXT = {**TEXT, "hidden_size": 16, "head_dim": 8}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
TWO_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
QWEN2_ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1]}
QWEN_VISION: dict[str, Any] = {"depth": 2, "num_heads": 4, "intermediate_size": 32}
LINEAR_AND_FULL = ["linear_attention", "full_attention"]
LINEAR_HEADS = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def _image_processor(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}ImageProcessor")(**settings)


def _qwen(name: str, factor: int, **settings: Any) -> Callable[[PreTrainedTokenizerFast], Any]:
    """A Qwen processor that scales every image to about 2 x 2 merged patches of `factor` pixels."""
    size = {"shortest_edge": (2 * factor) ** 2, "longest_edge": (2 * factor) ** 2}

    def make(tokenizer: PreTrainedTokenizerFast) -> Any:
        video = "Qwen3VL" if name == "Qwen3VL" else "Qwen2VL"
        return getattr(transformers, f"{name}Processor")(
            image_processor=_image_processor("Qwen2VL", size=size, **settings),
            tokenizer=tokenizer,
            video_processor=getattr(transformers, f"{video}VideoProcessor")(size=size),
            chat_template=tokenizer.chat_template,
        )

    return make


def _llava(name: str, **settings: Any) -> Callable[[PreTrainedTokenizerFast], Any]:
    def make(tokenizer: PreTrainedTokenizerFast) -> Any:
        return getattr(transformers, f"{name}Processor")(
            image_processor=_image_processor(
                name, size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, **settings
            ),
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=tokenizer.chat_template,
        )

    return make


def _gemma3(tokenizer: PreTrainedTokenizerFast) -> Any:
    images = _image_processor("Gemma3", size={"height": 56, "width": 56})
    return transformers.Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=16)


def _gemma4(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.Gemma4Processor(
        feature_extractor=transformers.Gemma4AudioFeatureExtractor(),
        image_processor=_image_processor("Gemma4", max_soft_tokens=70),
        tokenizer=tokenizer,
        video_processor=transformers.Gemma4VideoProcessor(),
        chat_template=tokenizer.chat_template,
        image_seq_length=70,
    )


def _lfm2_vl(tokenizer: PreTrainedTokenizerFast) -> Any:
    images = _image_processor("Lfm2Vl", do_image_splitting=False, min_image_tokens=4, max_image_tokens=16)
    return transformers.Lfm2VlProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def _muse_glimmer(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.MuseGlimmerProcessor(
        image_processor=_image_processor("MuseGlimmer", max_image_tokens=16),
        video_processor=transformers.MuseGlimmerVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_IDS = {f"{name}_id": token for name, token in QWEN_TOKENS.items()}
GEMMA_TOKENS = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
GEMMA4_TOKENS = {
    **GEMMA_TOKENS,
    "audio_token": "<audio_soft_token>",
    "boa_token": "<start_of_audio>",
    "eoa_token": "<end_of_audio>",
}
LLAVA_VISION = {"model_type": "clip_vision_model", "projection_dim": 16, **VISION}
LLAVA: dict[str, Any] = {
    "text_config": {"model_type": "llama", **SEEING_TEXT},
    "vision_config": LLAVA_VISION,
    "image_token_id": "<image>",
}
QWEN3_5_MOE_TEXT = {
    **SEEING_TEXT,
    **EXPERTS,
    **LINEAR_HEADS,
    "layer_types": LINEAR_AND_FULL,
    "num_experts": 4,
    "shared_expert_intermediate_size": 32,
}
QWEN3_VISION = {**QWEN_VISION, "hidden_size": 16, "out_hidden_size": 16, "num_position_embeddings": 64}
SEEING_FAMILIES: dict[str, Family] = {
    "Gemma3ForConditionalGeneration": Family(
        "Gemma3",
        {
            "text_config": {**SEEING_TEXT, "layer_types": SLIDING_AND_FULL, "query_pre_attn_scalar": 8},
            "vision_config": {**VISION, "vision_use_head": False},
            "mm_tokens_per_image": 16,
            "image_token_id": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        image="<start_of_image>",
        tokens=GEMMA_TOKENS,
        processor=_gemma3,
    ),
    "Gemma4ForConditionalGeneration": Family(
        "Gemma4",
        {
            "text_config": {
                **SEEING_TEXT,
                "layer_types": SLIDING_AND_FULL,
                "global_head_dim": 8,
                "hidden_size_per_layer_input": 16,
                "vocab_size_per_layer_input": "VOCABULARY",
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "position_embedding_size": 70 * 3**2,
            },
            "audio_config": None,
            "image_token_id": "<image_soft_token>",
            "audio_token_id": "<audio_soft_token>",
            "boi_token_id": "<start_of_image>",
            "eoi_token_id": "<end_of_image>",
            "boa_token_id": "<start_of_audio>",
        },
        image="<image_soft_token>",
        tokens=GEMMA4_TOKENS,
        processor=_gemma4,
    ),
    "Lfm2VlForConditionalGeneration-2.5": Family(
        "Lfm2Vl",
        {
            "text_config": {"model_type": "lfm2", **TEXT, "layer_types": ["conv", "full_attention"]},
            "vision_config": {
                "model_type": "siglip2_vision_model",
                **VISION,
                "patch_size": 16,
                "num_patches": 64,
                "vision_use_head": False,
            },
            "projector_hidden_size": 32,
            "image_token_id": "<image>",
        },
        image="<image>",
        tokens={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        processor=_lfm2_vl,
    ),
    "LlavaForConditionalGeneration": Family(
        "Llava", LLAVA, image="<image>", tokens={"image_token": "<image>"}, processor=_llava("Llava")
    ),
    "LlavaNextForConditionalGeneration": Family(
        "LlavaNext",
        {**LLAVA, "image_grid_pinpoints": [[56, 112], [112, 56]]},
        image="<image>",
        tokens={"image_token": "<image>"},
        processor=_llava("LlavaNext", image_grid_pinpoints=[[56, 112], [112, 56]]),
    ),
    "MuseGlimmerForConditionalGeneration": Family(
        "MuseGlimmer",
        {
            "text_config": {**SEEING_TEXT, "layer_types": SLIDING_AND_FULL, "layer_rope_theta": [10_000.0, 0]},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "layer_types": ["window_attention", "full_attention"],
            },
            "out_hidden_size": 64,
            "projector_hidden_size": 32,
            "image_token_id": "<|patch|>",
            "video_token_id": "<|video|>",
        },
        image="<|patch|>",
        tokens={
            "image_token": "<|patch|>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "video_token": "<|video|>",
        },
        processor=_muse_glimmer,
    ),
    "Qwen2VLForConditionalGeneration": Family(
        "Qwen2VL",
        {
            "text_config": {**SEEING_TEXT, **TWO_HEADS, "rope_parameters": QWEN2_ROPE},
            "vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2},
            **QWEN_IDS,
        },
        image=QWEN_IMAGE,
        tokens=QWEN_TOKENS,
        processor=_qwen("Qwen2VL", 28),
    ),
    "Qwen2_5_VLForConditionalGeneration": Family(
        "Qwen2_5_VL",
        {
            "text_config": {**SEEING_TEXT, **TWO_HEADS, "rope_parameters": QWEN2_ROPE},
            "vision_config": {**QWEN_VISION, "hidden_size": 16, "out_hidden_size": 16, "fullatt_block_indexes": [1]},
            **QWEN_IDS,
        },
        image=QWEN_IMAGE,
        tokens=QWEN_TOKENS,
        processor=_qwen("Qwen2_5_VL", 28),
    ),
    "Qwen3VLForConditionalGeneration": Family(
        "Qwen3VL",
        {
            "text_config": {
                **SEEING_TEXT,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
            },
            "vision_config": {**QWEN3_VISION, "deepstack_visual_indexes": [1]},
            **QWEN_IDS,
        },
        image=QWEN_IMAGE,
        tokens=QWEN_TOKENS,
        processor=_qwen("Qwen3VL", 32, patch_size=16),
    ),
    "Qwen3_5ForConditionalGeneration-NoThink": Family(
        "Qwen3_5",
        {
            "text_config": {**SEEING_TEXT, **LINEAR_HEADS, "layer_types": LINEAR_AND_FULL},
            "vision_config": QWEN3_VISION,
            **QWEN_IDS,
        },
        image=QWEN_IMAGE,
        tokens=QWEN_TOKENS,
        processor=_qwen("Qwen3VL", 32, patch_size=16),
    ),
    "Qwen3_5MoeForConditionalGeneration-3.6": Family(
        "Qwen3_5Moe",
        {"text_config": QWEN3_5_MOE_TEXT, "vision_config": QWEN3_VISION, **QWEN_IDS},
        image=QWEN_IMAGE,
        tokens=QWEN_TOKENS,
        processor=_qwen("Qwen3VL", 32, patch_size=16),
    ),
}
