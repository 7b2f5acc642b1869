"""A tiny random vision-language model (LLaVA's layout), its processor, and pairs with an image."""

from __future__ import annotations

import random

import torch
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as PILImage
from tiny import tiny_tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

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
