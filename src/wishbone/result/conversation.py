"""A conversation with the model of a run, whose answers arrive piece by piece.

A question is asked in the form that was trained: as a turn of the chat template, with the turns before it, or as a text
that the model continues, without what came before. Where the run was trained on images, a question may show some
(`shown_images.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from wishbone.data.messages import Message
from wishbone.data.pair_images import PairImages, placed_images
from wishbone.errors import RequestError
from wishbone.fused.parts import text_layers
from wishbone.policy.activations import checkpointed_layers
from wishbone.policy.layer_progress import counted_layers
from wishbone.report.answers import conversation_ids, decode_greedily
from wishbone.result.shown_images import named_images, parts_of
from wishbone.result.trained_model import TrainedModel
from wishbone.trainer.image_rows import ImageRows

Show = Callable[[str], None]
CUT = " \N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Reply:
    """An answer without special tokens, and whether an end token, the longest length or the person ended it."""

    text: str
    end: Literal["token", "length", "person"]


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        temperature: 0 takes the most likely token each time; above it tokens are drawn, the more evenly the higher.
        seed: of the draws of each answer.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Conversation:
    """A conversation.

    Attributes:
        model: of the run.
        as_text: the run trained texts as they are, so questions are texts that the model continues.
        system: system prompt, or None for that of the template.
        decoding: how answers are decoded.
        turns: questions and answers so far; empty with `as_text`.
    """

    model: TrainedModel
    as_text: bool
    system: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    turns: list[Message] = field(default_factory=list)
    _last: tuple[str, str | list[Message], list[Message]] | None = None

    def ask(self, question: str, show: Show) -> Reply:
        """Ask the trained model, show its answer as it arrives, and return it.

        An answer that a KeyboardInterrupt ends stays in the conversation as far as it came.

        Raises:
            RequestError: the template refuses the conversation, no room is left for an answer, or an image that the
                question names cannot be read or shown.
        """
        content = self._content(question)
        asked = self._encoded(content, self.turns)
        self._last = question, content, list(self.turns)
        reply = self._answered(self.model.trained, *asked, show)
        if not self.as_text:
            self.turns += [{"role": "user", "content": content}, {"role": "assistant", "content": reply.text}]
        return reply

    def ask_before(self, show: Show) -> Reply:
        """Ask the model as it was before training what was asked last; the conversation stays as it is.

        Raises:
            RequestError: nothing was asked yet, or as `ask`.
        """
        if self._last is None:
            raise RequestError("nothing was asked yet; ask a question, and /base answers it without the training")
        asked = self._encoded(*self._last[1:])
        with self.model.before() as model:
            return self._answered(model, *asked, show)

    @property
    def last_question(self) -> str | None:
        """What was asked last."""
        return self._last[0] if self._last else None

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns.clear()
        self._last = None

    def _content(self, question: str) -> str | list[Message]:
        """A question as a text, or as parts where it shows images."""
        named = named_images(question)
        if not named:
            return question
        if not self.model.reads_images:
            raise RequestError(
                f"the run was trained on text alone, so {named[0]} cannot be shown; leave out the word with the @, or "
                "train on pairs with images"
            )
        return parts_of(question)

    def _encoded(self, content: str | list[Message], earlier: list[Message]) -> tuple[list[int], PairImages | None]:
        """Token ids of the conversation up to where the answer begins, and its images as the model takes them."""
        tokenizer = self.model.tokenizer
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        if self.model.reads_images:
            turns = [*system, *earlier, {"role": "user", "content": content}]
            return ImageRows(self.model.processor).asked(content if self.as_text else turns)
        assert isinstance(content, str)
        if self.as_text:
            return list(tokenizer(content)["input_ids"]), None
        return conversation_ids([*system, *earlier, {"role": "user", "content": content}], tokenizer), None

    def _answered(
        self, model: PreTrainedModel | PeftModel, ids: list[int], images: PairImages | None, show: Show
    ) -> Reply:
        if not ids:
            raise RequestError("the question has no tokens; write a question")
        decode_greedily(model, self.model.tokenizer, self._room(model, len(ids)))
        sampling: dict[str, Any] = {}
        if self.decoding.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.decoding.temperature, "top_k": 0}
            torch.manual_seed(self.decoding.seed)
        pieces = _Pieces(self.model.tokenizer, show)
        prompt = torch.tensor([ids], device=model.device)
        seen = placed_images([(images, [(0, 0)])], (1, len(ids)), model.device)
        end: Literal["token", "length", "person"]
        try:
            layers = checkpointed_layers(text_layers(model)[1])
            with torch.inference_mode(), counted_layers(layers, len(ids), model.device):
                sequence = model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    streamer=pieces,
                    use_cache=True,
                    **seen,
                    **sampling,
                )[0]
            end = "token" if int(sequence[-1]) in (model.generation_config.eos_token_id or []) else "length"
        except KeyboardInterrupt:
            pieces.end()
            end = "person"
        if end != "token":
            show(CUT)
        return Reply("".join(pieces.texts).strip(), end)

    def _room(self, model: PreTrainedModel | PeftModel, asked: int) -> int:
        """Tokens that an answer may have."""
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if not isinstance(longest, int):
            return self.decoding.max_new_tokens
        if asked >= longest:
            remedy = "ask less" if self.as_text or not self.turns else "begin a new conversation with /reset"
            raise RequestError(
                f"the conversation has {asked:,} tokens with this question, and the model takes {longest:,}; {remedy}"
            )
        return min(self.decoding.max_new_tokens, longest - asked)


class _Pieces(TextStreamer):  # type: ignore[misc]
    """Shows the pieces of an answer, without special tokens, and keeps them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Show) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.show = show
        self.texts: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Show the next piece; white space at the beginning of an answer is left out."""
        if not self.texts:
            text = text.lstrip()
        if text:
            self.texts.append(text)
            self.show(text)
