"""Pairs as a model sees them: token ids after the chat template, cut into the texts of single tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from wishbone.data.tokenize import CUT_COLUMN, EMPTY_COLUMN, ID_COLUMNS, LOST_COLUMN, NOTES_COLUMN, tokenize_batch
from wishbone.errors import RequestError

Pair = Mapping[str, Any]
WINDOW = 8
"""Most tokens that together are one character; UTF-8 has at most four bytes, and a token at least one."""


@dataclass(frozen=True)
class Seen:
    """A pair as token ids.

    Attributes:
        prompt, chosen, rejected: ids; only those of the completions are trained.
        found: keys of `kinds.KINDS` that tokenizing showed, each with what was found or an empty text. A pair that the
            template refuses has "refused" with the reason, and no ids.
        prompt_tokens: of a prompt with images, whose ids have one mark for each; None where `prompt` is whole.
    """

    prompt: Sequence[int] = ()
    chosen: Sequence[int] = ()
    rejected: Sequence[int] = ()
    found: Mapping[str, str] = field(default_factory=dict)
    prompt_tokens: int | None = None

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens of prompt, chosen, rejected."""
        prompt = len(self.prompt) if self.prompt_tokens is None else self.prompt_tokens
        return prompt, len(self.chosen), len(self.rejected)


class ModelView:
    """Shows pairs as a model sees them.

    Args:
        tokenizer: of the model.
        positions: how many tokens the model takes; None if it does not say.
        prompt_tokens: returns the tokens of a pair's prompt with its images; None for a model that reads none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        positions: int | None = None,
        prompt_tokens: Callable[[Pair], int] | None = None,
    ) -> None:
        self._prompt_tokens = prompt_tokens
        self._tokenizer = tokenizer
        self.positions = positions
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = {*tokenizer.all_special_ids, *added}

    @property
    def special_tokens(self) -> list[str]:
        """The tokens that the tokenizer treats as special, as text."""
        return sorted(str(self._tokenizer.convert_ids_to_tokens(index)) for index in self._special)

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self._tokenizer.chat_template)

    @property
    def ends(self) -> list[str]:
        """The tokens at the ends of a sequence, which are not written twice."""
        found = (self._tokenizer.bos_token, self._tokenizer.eos_token)
        return [str(token) for token in found if token]

    def see(self, pairs: Sequence[Pair]) -> list[Seen]:
        """The ids of pairs; one that the template refuses has the reason instead.

        Raises:
            RequestError: what is wrong holds for every pair, such as messages without a chat template.
        """
        try:
            return self._seen(pairs)
        except RequestError as refusal:
            if not all(problem.startswith(("row ", "... and")) for problem in refusal.problems):
                raise
            if len(pairs) == 1:
                return [Seen(found={"refused": refusal.problems[0].partition(": ")[2]})]
        return [seen for pair in pairs for seen in self.see([pair])]

    def _seen(self, pairs: Sequence[Pair]) -> list[Seen]:
        names = dict.fromkeys(name for pair in pairs for name in pair)
        batch = {name: [pair.get(name) for pair in pairs] for name in names} | {"source_row": [*range(len(pairs))]}
        found = tokenize_batch(self._tokenizer, batch, [*range(len(pairs))])
        return [
            self._one({name: values[row] for name, values in found.items()}, pair) for row, pair in enumerate(pairs)
        ]

    def _one(self, row: Mapping[str, Any], pair: Pair) -> Seen:
        prompt, chosen, rejected = (row[name].tolist() for name in ID_COLUMNS)
        unscored = not prompt  # without a prompt, nothing predicts the first token
        lost, _, beginning = (row[LOST_COLUMN] or "").partition("\n")
        tokens: int | None = None
        mismatch = ""
        if pair.get("images") and self._prompt_tokens is not None:
            try:
                tokens = self._prompt_tokens(pair)
            except RequestError as error:
                mismatch = str(error)
        faults = {
            "image": mismatch,
            "lost_text": lost and (f"{lost}: {beginning!r}" if beginning else lost),
            "empty": min(len(chosen), len(rejected)) <= unscored or row[EMPTY_COLUMN],
            "identical": chosen == rejected,
            "too_long": self.positions is not None and (tokens or len(prompt)) >= self.positions,
            "moved_boundary": row[CUT_COLUMN] > 0,
            "rewritten": (row[NOTES_COLUMN] or "").replace("\n", "; "),
        }
        named = {name: how if isinstance(how, str) else "" for name, how in faults.items() if how}
        return Seen(prompt, chosen, rejected, named, tokens)

    def tokens(self, ids: Sequence[int], most: int) -> list[tuple[str, bool]]:
        """The text of each token, and whether it is a special one; joined, they are the text that the model sees.

        Tokens that only together are a character stand as one.

        Args:
            ids: of one side.
            most: of tokens that are decoded.
        """
        found: list[tuple[str, bool]] = []
        begin = done = 0
        for end in range(1, min(len(ids), most) + 1):
            before, now = self._decoded(ids[begin:done]), self._decoded(ids[begin:end])
            if now.endswith("\N{REPLACEMENT CHARACTER}") and end - done < WINDOW and end < len(ids):
                continue
            found.append((now[len(before) :], end - done == 1 and ids[done] in self._special))
            begin, done = done, end
        return found

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
