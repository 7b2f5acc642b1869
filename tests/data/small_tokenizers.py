"""Small tokenizers, each with one property that makes tokenizing pairs hard, and TRL's own way to do it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from datasets import Dataset, disable_progress_bars
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl.trainer.dpo_trainer import DPOTrainer

disable_progress_bars()

SENTENCES = [
    "Newton saw an apple fall. Newtons are units of force; newspapers write about Newton.",
    "The sky is blue because the air scatters blue light more than red light.",
    "What is the capital of France? The capital of France is Paris.",
    "  def f(x):\n    return x + 1\n\n\nprint(f(2))",
    "Grüße aus Köln, これは猫です, émigré naïve, 12345 67890",
] * 3

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message.get('tool_calls') %}{{ message['tool_calls'] | tojson }}{% endif %}"
    "{{ message.get('content', '') }}<|im_end|>\n{% endfor %}"
    "{% if tools %}[{{ tools | tojson }}]{% endif %}"
    "{% if shout is defined %}{{ shout }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %} {{ message['content'] }} "
    "{{ eos_token }}{% else %}[INST] {{ message['content'] }} [/INST]{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def _byte_level(specials: list[str | AddedToken], *, add_prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _sentencepiece_like(*, prepend_in_normalizer: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepend_in_normalizer:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    specials = ["<unk>", "<s>", "</s>", *byte_tokens]
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    )
    beginning = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[beginning])
    return tokenizer


def _fast(tokenizer: Tokenizer, template: str | None, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


class CharacterTokenizer(PreTrainedTokenizer):
    """A tokenizer without a Rust backend: one token a character."""

    def __init__(self, **kwargs: Any) -> None:
        self.characters = {chr(code): code for code in range(32, 127)} | {"\n": 10, "?": 63}
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return 127

    def get_vocab(self) -> dict[str, int]:
        return self.characters | self.added_tokens_encoder

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.characters.get(token, 63)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


IM = ("<|im_start|>", "<|im_end|>")
BUILDERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "chatml": lambda: _fast(_byte_level([*IM]), CHATML, eos_token=IM[1]),
    "writes the prompt differently alone": lambda: _fast(_byte_level([*IM]), THINKING, eos_token=IM[1]),
    "adds a beginning": lambda: _fast(
        _sentencepiece_like(prepend_in_normalizer=False), INSTRUCT, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ),
    "prepends in every piece": lambda: _fast(
        _sentencepiece_like(prepend_in_normalizer=True), INSTRUCT, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ),
    "merges across the boundary": lambda: _fast(_byte_level(["<end>"]), PLAIN, eos_token="<end>"),
    "adds a space before every piece": lambda: _fast(
        _byte_level([*IM], add_prefix_space=True), CHATML, eos_token=IM[1]
    ),
    "special tokens take the space before them": lambda: _fast(
        _byte_level([AddedToken(token, lstrip=True, special=True) for token in IM]), CHATML, eos_token=IM[1]
    ),
    "special tokens overlap": lambda: _fast(_byte_level([*IM, "\n<|im_start|>"]), CHATML, eos_token=IM[1]),
    "splits special tokens": lambda: _fast(_byte_level([*IM]), CHATML, eos_token=IM[1], split_special_tokens=True),
    "no backend": lambda: CharacterTokenizer(chat_template=CHATML, eos_token=IM[1], additional_special_tokens=[IM[0]]),
}


def trl_ids(dataset: Any, tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int], list[int]]]:
    """The ids of TRL's own preparation, which asks its trainer for nothing but the tokenizer."""
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    return ids_of(DPOTrainer._prepare_dataset(trainer, dataset, tokenizer, arguments, "train"))


def ids_of(dataset: Any) -> list[tuple[list[int], list[int], list[int]]]:
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in dataset]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def dataset(*rows: dict[str, Any]) -> Dataset:
    return Dataset.from_list(list(rows))
