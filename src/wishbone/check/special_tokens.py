"""Special tokens and chat markup inside the texts of pairs.

A chat template writes these tokens between messages, and most tokenizers read them as such wherever they stand. Without
a tokenizer the spellings of the common templates are looked for, with one its own special tokens as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIGNS = ("<|", "<\uff5c", "[INST]", "[/INST]", "<<SYS>>", "_of_turn>", "<bos>", "<eos>", "<pad>", "<extra_id_", "s>")
"""Each spelling holds one of these: looking for them first is faster than the expression below."""
_MARKUP = re.compile(
    r"<\|[A-Za-z0-9_]{2,32}\|>|<\uff5c[^\uff5c<>]{2,40}\uff5c>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
    r"|<(?:bos|eos|pad)>|<extra_id_\d+>|\A\s*<s>|</s>(?=\s*\Z)"
)


class SpecialTokens:
    """Finds tokens that do not belong into texts.

    Args:
        known: special tokens of a tokenizer.
        ends: of these, the ones that may end a completion given as text, and begin a prompt given as text: the
            tokenizer's own end and beginning of a sequence, which are not written twice.
    """

    def __init__(self, known: Sequence[str] = (), ends: Sequence[str] = ()) -> None:
        self._known = tuple(token for token in known if len(token) > 2)
        self._ends = tuple(end for end in ends if end)

    def find(self, text: str, *, is_whole: bool = False) -> str | None:
        """The first such token in a text, or None.

        Args:
            text: of a message; or with `is_whole` a prompt or completion that is trained as text.
            is_whole: whether a beginning and an end of the sequence around the text are allowed.
        """
        if is_whole:
            text = self._inner(text)
        if any(sign in text for sign in _SIGNS) and (match := _MARKUP.search(text)):
            return match.group().strip()
        return next((token for token in self._known if token in text), None)

    def _inner(self, text: str) -> str:
        for end in self._ends:
            text = text.removesuffix(end).removeprefix(end)
        return text
