"""Shapes of well-known models: their weights add up to what the hub counts in their files, and names are understood."""

from __future__ import annotations

import pytest

from wishbone.errors import RequestError
from wishbone.planning.known_models import known_name, known_shape, known_shapes
from wishbone.planning.model_shape import read_shape

PUBLISHED = {  # weights by each model card, a tied head counted once; of models that see, of the language model alone
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-2-9b-it": 9_241_705_984,
    "google/gemma-2-27b-it": 27_227_128_320,
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-3-4b-it": 3_880_263_168,
    "google/gemma-3-12b-it": 11_766_034_176,
    "google/gemma-3-27b-it": 27_009_346_304,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Ministral-8B-Instruct-2410": 8_019_808_256,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3.5-mini-instruct": 3_821_079_552,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "allenai/OLMo-2-1124-7B-Instruct": 7_298_617_344,
    "ibm-granite/granite-3.1-2b-instruct": 2_533_531_648,
    "ibm-granite/granite-3.1-8b-instruct": 8_170_848_256,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_add_up_to_what_is_published(name: str):
    assert known_shapes()[name].parameters == PUBLISHED[name]


def test_every_known_model_has_a_published_count():
    assert set(known_shapes()) == set(PUBLISHED)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "meta-llama/Llama-3.1-8B-Instruct"),
        ("unsloth/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "Qwen/Qwen3-4B"),
        ("google/gemma-3-4b-pt", "google/gemma-3-4b-it"),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("someone/Llama-3.1-8B-abliterated", None),
        ("Qwen/Qwen3-9B", None),
        ("", None),
    ],
)
def test_a_name_is_known_under_any_owner_and_form(name: str, known: str | None):
    assert known_name(name) == known
    assert (known_shape(name) is None) == (known is None)


def test_a_config_with_missing_fields_names_them_all():
    with pytest.raises(RequestError, match="lacks num_hidden_layers, num_attention_heads, vocab_size"):
        read_shape({"model_type": "llama", "hidden_size": 64, "intermediate_size": 128}, "mine")


def test_sizes_that_are_none_are_named():
    sizes = {"hidden_size": -1, "num_hidden_layers": "two", "num_attention_heads": True, "vocab_size": 10}
    with pytest.raises(
        RequestError, match=r"hidden_size is -1, num_hidden_layers is 'two', num_attention_heads is True"
    ):
        read_shape({**sizes, "intermediate_size": 128})
