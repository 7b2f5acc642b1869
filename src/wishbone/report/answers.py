"""Answers to the same prompts before and after a run, decoded greedily.

"Before" is the base model: the model of the run with its adapter off. "After" is the model with the adapter on, or with
the weights that the run wrote if it trained every weight. Greedy answers need no seed, so only the training makes them
differ.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from wishbone.atomic_file import write_text
from wishbone.config.document import show
from wishbone.config.schema import ModelConfig
from wishbone.data.chat_template import REFUSALS, rendered
from wishbone.data.messages import Message
from wishbone.data.pair_images import PairImages, placed_images
from wishbone.errors import RequestError, one_line
from wishbone.fused.parts import text_layers
from wishbone.model.load import load_model, saved_with_processor
from wishbone.model.saved_adapter import load_adapter
from wishbone.paths import unwritten, user_path
from wishbone.phases import phase
from wishbone.policy.activations import checkpointed_layers
from wishbone.policy.layer_progress import counted_layers
from wishbone.report.run_directory import ANSWERS, CONFIG, RunRecord, read_run

ADAPTER, WHOLE_MODEL = "adapter", "model"
MOST_REASON = 300
"""Characters of the reason for which a run failed that a message repeats."""


@dataclass(frozen=True)
class Question:
    """A prompt (text or chat messages), its token ids up to where the answer begins, the chosen answer or None.

    Attributes:
        images: those of the prompt, or None.
    """

    prompt: str | list[Message]
    ids: list[int]
    chosen: str | None = None
    images: PairImages | None = None


@dataclass(frozen=True)
class Answer:
    """Answers of a model before and after a run, without special tokens; " …" ends an answer that was cut off."""

    prompt: str | list[Message]
    before: str
    after: str
    chosen: str | None


def question_from_text(
    text: str, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None, *, as_text: bool = False
) -> Question:
    """Return a text as a user message, or as a text to continue: without a chat template, or if a run trained texts.

    Raises:
        RequestError: the chat template refuses the text, or does not end.
    """
    if tokenizer.chat_template is None or as_text:
        return Question(text, list(tokenizer(text)["input_ids"]))
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages.append({"role": "user", "content": text})
    return Question(messages, conversation_ids(messages, tokenizer))


def conversation_ids(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of a conversation up to where the next answer begins.

    Raises:
        RequestError: the chat template refuses the conversation, or does not end.
    """
    write = partial(tokenizer.apply_chat_template, messages, add_generation_prompt=True, return_dict=True)
    try:
        encoded = rendered(write, conversations=1, characters=sum(len(turn["content"]) for turn in messages))
    except RequestError:
        raise
    except REFUSALS as refusal:
        raise RequestError(f"the chat template refuses the prompt: {one_line(refusal)}") from refusal
    return list(encoded["input_ids"])


def questions_from_pairs(pairs: Dataset, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Question]:
    """Return the first `count` distinct prompts of tokenized pairs; pairs that have only ids are decoded."""
    questions: dict[tuple[int, ...], Question] = {}
    for row in pairs:
        ids = list(row["prompt_ids"])
        prompt = row["prompt"] if "prompt" in row else tokenizer.decode(ids)
        chosen = row["chosen"] if "chosen" in row else tokenizer.decode(row["chosen_ids"], skip_special_tokens=True)
        questions.setdefault(tuple(ids), Question(prompt, ids, completion_text(chosen)))
        if len(questions) == count:
            break
    return list(questions.values())


def answer_before_and_after(
    run_dir: Path, base: ModelConfig, questions: Sequence[Question], *, max_new_tokens: int
) -> list[Answer]:
    """Load the model of a run and generate its answers before and after training.

    Args:
        run_dir: contains `adapter/` (PEFT format) or, if the run trained every weight, `model/`.
        base: the model with which the run began.
        questions: prompts to answer.
        max_new_tokens: longest answer, in tokens.

    Raises:
        RequestError: there is no result yet, a model or the adapter cannot be loaded, or a question is too long.
    """
    learned = learned_weights(run_dir)
    images = saved_with_processor(learned)
    model, tokenizer = load_model(
        base.name,
        dtype=base.dtype,
        revision=base.revision,
        trust_remote_code=base.trust_remote_code,
        load_in_4bit=base.quantization == "nf4",
        images=images,
    )
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    _refuse_too_long(questions, model, max_new_tokens)
    answer = partial(_answers, questions=questions, tokenizer=tokenizer)
    decode_greedily(model, tokenizer, max_new_tokens)
    if learned.name == ADAPTER:
        adapted = load_adapter(model, learned, trainable=False).eval()
        with adapted.disable_adapter():
            before = answer(adapted)
        after = answer(adapted)
    else:
        before = answer(model)
        del model
        trained, _ = load_model(str(learned), dtype=base.dtype, trust_remote_code=base.trust_remote_code, images=images)
        decode_greedily(trained, tokenizer, max_new_tokens)
        after = answer(trained)
    return [
        Answer(question.prompt, first, second, question.chosen)
        for question, first, second in zip(questions, before, after, strict=True)
    ]


def learned_weights(run_dir: Path) -> Path:
    """Return the directory with the trained weights of a run, `adapter/` or `model/`.

    Raises:
        RequestError: the run has neither, or it may not be looked into.
    """
    for name, marker in ((ADAPTER, "adapter_config.json"), (WHOLE_MODEL, "config.json")):
        if user_path(run_dir / name / marker).is_file():
            return run_dir / name
    raise RequestError(
        f"{show(str(run_dir))} has no {ADAPTER}/ and no {WHOLE_MODEL}/, which are written when a run ends; "
        f"{_how_it_ends(run_dir)}, or name a run that is done"
    )


def _how_it_ends(run_dir: Path) -> str:
    """Why a run has no result, where it says so, and the command with which it gets one."""
    command = f"wishbone train {shlex.quote(str(run_dir / CONFIG))} --resume"
    record = RunRecord(run_dir)
    with suppress(RequestError):
        record = read_run(run_dir)
    reason = " ".join(str(record.summary.get("reason") or "").split()).rstrip(".")
    if record.status == "failed":
        reason = reason or next(reversed(record.error_log.strip().splitlines()), "").strip()
        said = f"it failed ({reason[:MOST_REASON]})" if reason else "it failed"
        return f"{said}: put that right and train again, or where its settings stay, continue it with `{command}`"
    return f"{f'it ended early ({reason[:MOST_REASON]}): ' if reason else ''}continue it with `{command}`"


def decode_greedily(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> None:
    """Make `model.generate` always take the most likely token, instead of the sampling that the model recommends.

    Answers end after `max_new_tokens`, or with an end token of the model or the tokenizer.
    """
    ends: list[int] = []
    for token in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        ends += token if isinstance(token, list) else [] if token is None else [token]
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(dict.fromkeys(ends)) or None,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.inference_mode()
def _answers(
    model: PreTrainedModel | PeftModel, *, questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """One answer per question, each computed alone so that padding cannot change it."""
    answers = []
    layers = checkpointed_layers(text_layers(model)[1])
    with phase("answers", len(questions), "answer") as answering:
        for question in questions:
            ids = torch.tensor([question.ids], device=model.device)
            seen = placed_images([(question.images, [(0, 0)])], (1, len(question.ids)), model.device)
            with counted_layers(layers, len(question.ids), model.device):
                sequence = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **seen)[0]
            text = str(tokenizer.decode(sequence[len(question.ids) :], skip_special_tokens=True)).strip()
            ended = int(sequence[-1]) in (model.generation_config.eos_token_id or [])
            answers.append(text if ended else f"{text} \N{HORIZONTAL ELLIPSIS}")
            answering.more()
    return answers


def write_answers(run_dir: Path, answers: Sequence[Answer]) -> Path:
    """Write `answers.json` into a run directory, as a whole or not at all, and return its path.

    Raises:
        RequestError: it cannot be written.
    """
    path = run_dir / ANSWERS
    try:
        write_text(path, to_json(answers))
    except OSError as error:
        raise RequestError(unwritten(path, error, "copy the run to another place")) from error
    return path


def to_json(answers: Sequence[Answer]) -> str:
    """Return answers as JSON in ASCII, which escapes control characters in a model's output."""
    return json.dumps([asdict(answer) for answer in answers], indent=2) + "\n"


def _refuse_too_long(questions: Sequence[Question], model: PreTrainedModel, max_new_tokens: int) -> None:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is None:
        return
    problems = [
        f"prompt {number} has {len(question.ids):,} tokens, which with an answer of {max_new_tokens} exceeds the "
        f"model's limit of {longest:,}; shorten the prompt, or lower --max-new-tokens"
        for number, question in enumerate(questions, 1)
        if len(question.ids) + max_new_tokens > longest
    ]
    if problems:
        raise RequestError(problems)


def completion_text(completion: str | list[Message]) -> str:
    """A completion as text: the contents of its messages."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)
