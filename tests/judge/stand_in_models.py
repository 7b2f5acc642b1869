"""Tiny random models in place of those that TRL's tests load from the hub.

A model is a folder `trl-internal-testing/tiny-NAME` below the working directory, which transformers prefers to the hub
id of the same name. It holds random weights in bfloat16, a tokenizer trained on the stand-in data sets, a chat template
that handles tools, reasoning and images, and, for vision models, an image processor that turns an image into few
tokens.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from stand_in_datasets import ORGANIZATION, texts
from stand_in_families import TEXT, TEXT_FAMILIES, TRAJECTORY, Family
from stand_in_vision import SEEING_FAMILIES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>"]
CHAT_TEMPLATE = (
    "{% if model_identity %}<|im_start|>system\n{{ model_identity }} {{ reasoning_effort }}<|im_end|>\n{% endif %}"
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['thinking'] %}<think>{{ message['thinking'] }}</think>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] or [] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_models(root: Path) -> dict[str, str]:
    """Write every model below `root`, replacing what is there; return the reason for each that could not be made.

    Vision models need torchvision and pillow; every family needs a version of transformers that has it.
    """
    failures = {}
    for name, family in {**TEXT_FAMILIES, **SEEING_FAMILIES}.items():
        folder = root / ORGANIZATION / f"tiny-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _save(family, folder)
        except (AttributeError, ImportError, ValueError, TypeError) as error:
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            shutil.rmtree(folder, ignore_errors=True)
    _save_with_code(root / ORGANIZATION / "tiny-RemoteForCausalLM")
    _save(TRAJECTORY, root / "Qwen" / "Qwen2.5-0.5B-Instruct")
    return failures


def _save(family: Family, folder: Path) -> None:
    tokenizer = _tokenizer(family)
    config_class = getattr(transformers, f"{family.prefix}Config")
    generates = "ForConditionalGeneration" if family.processor else "ForCausalLM"
    fields = _resolved(family.fields, tokenizer)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    fields.get("text_config", fields).update(vocab_size=len(tokenizer), **special)
    _random(getattr(transformers, family.prefix + generates)(config_class(**fields))).save_pretrained(folder)
    (family.processor(tokenizer) if family.processor else tokenizer).save_pretrained(folder)


def _resolved(fields: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Replace tokens by their ids, and "VOCABULARY" by its size."""

    def value(name: str, given: Any) -> Any:
        if isinstance(given, dict):
            return _resolved(given, tokenizer)
        if given == "VOCABULARY":
            return len(tokenizer)
        if isinstance(given, str) and name.endswith(("_id", "_index")):
            return tokenizer.convert_tokens_to_ids(given)
        return given

    return {name: value(name, given) for name, given in fields.items()}


def _random(model: PreTrainedModel) -> PreTrainedModel:
    """Draw matrices large enough that gradients move every weight; return the model in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "conv1d" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
            elif not weight.isfinite().all() or name.endswith("sinks"):
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return model.to(torch.bfloat16)


def _save_with_code(folder: Path) -> None:
    """Save a model with its classes beside its weights, so that loading it runs the repository's code."""
    _save(Family("Llama", TEXT), folder)
    (folder / "configuration_remote.py").write_text(
        'from transformers import LlamaConfig\n\n\nclass RemoteConfig(LlamaConfig):\n    model_type = "remote"\n',
        encoding="utf-8",
    )
    (folder / "modeling_remote.py").write_text(
        "from transformers import LlamaForCausalLM\n\nfrom .configuration_remote import RemoteConfig\n\n\n"
        "class RemoteForCausalLM(LlamaForCausalLM):\n    config_class = RemoteConfig\n",
        encoding="utf-8",
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    classes = {
        "AutoConfig": "configuration_remote.RemoteConfig",
        "AutoModelForCausalLM": "modeling_remote.RemoteForCausalLM",
    }
    config |= {"model_type": "remote", "architectures": ["RemoteForCausalLM"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _tokenizer(family: Family) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>" if family.padded else None,
        extra_special_tokens=family.tokens,
        clean_up_tokenization_spaces=False,
    )
    if family.prefix == "MuseGlimmer":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|vid_start|>", "<|vid_end|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE.replace("IMAGE", family.image)
    return tokenizer


@cache
def _trained() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    words = [
        "system",
        "user",
        "assistant",
        "tool",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*texts(), *words * 9], trainer)
    return backend.to_str()
