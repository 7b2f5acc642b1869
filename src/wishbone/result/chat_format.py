"""The chat template of a tokenizer as fixed texts around the turns, which Ollama's templates can express.

A template is a program, and most are this simple: a text before and after what each role says, and one where the next
answer begins. The texts are found by writing conversations of marked words, and kept only if putting them together
gives what the template writes for other conversations, too.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

from wishbone.data.chat_template import REFUSALS, rendered
from wishbone.data.messages import Message
from wishbone.errors import RequestError

SYSTEM, FIRST, ANSWER, SECOND = "Sqzsystem", "Qzqfirst", "Azqanswer", "Qzqsecond"
OTHERS = (("Be brief.", ["Hi", "Hello!", "Who?"]), (None, ["1 + 1?"]), (None, ["a", "b", "c", "d", "e"]))


@dataclass(frozen=True)
class ChatFormat:
    """Texts before and after what a role says.

    Attributes:
        system: around the system prompt; None if the template has none.
        unasked: at the beginning of a conversation without a system prompt.
        user, assistant: around their turns.
        answer: where the next answer begins.
    """

    system: tuple[str, str] | None
    unasked: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str

    def written(self, system: str | None, turns: list[str]) -> str:
        """A conversation, whose turns are the user's and the assistant's by turns, up to the next answer."""
        begin = self.unasked if system is None or self.system is None else system.join(self.system)
        said = [text.join(self.assistant if i % 2 else self.user) for i, text in enumerate(turns)]
        return begin + "".join(said) + self.answer


def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat | None:
    """Return the format of a chat template, or None if fixed texts do not express it."""
    try:
        found = _found(tokenizer)
        for system, turns in OTHERS:
            if system is not None and found.system is None:
                continue
            if found.written(system, turns) != _written(tokenizer, system, turns):
                return None
    except (RequestError, *REFUSALS):
        return None
    return found


def _found(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """The format that marked conversations show; ValueError if a marked word is not in what the template writes."""
    head, end = _written(tokenizer, None, [FIRST]).split(FIRST)
    user_end = _written(tokenizer, None, [FIRST], answer=False).split(FIRST)[1]
    if not end.startswith(user_end):
        raise ValueError("the user's turn ends differently where an answer follows")
    between = _written(tokenizer, None, [FIRST, ANSWER, SECOND])
    _, to_answer, rest = between.replace(ANSWER, FIRST).split(FIRST)
    if not to_answer.startswith(user_end):
        raise ValueError("the user's turn ends differently before an answer")
    to_user = rest.split(SECOND)[0]
    begins = [head, to_user]
    system = None
    with suppress(*REFUSALS):
        before, rest = _written(tokenizer, SYSTEM, [FIRST]).split(SYSTEM)
        system = before, rest.split(FIRST)[0]
        begins.append(system[1])
    user = _common_end(begins)
    return ChatFormat(
        system=None if system is None else (system[0], system[1].removesuffix(user)),
        unasked=head.removesuffix(user),
        user=(user, user_end),
        assistant=(to_answer.removeprefix(user_end), to_user.removesuffix(user)),
        answer=end.removeprefix(user_end),
    )


def _common_end(texts: list[str]) -> str:
    """The longest text with which all texts end."""
    shortest = min(texts, key=len)
    return next(shortest[i:] for i in range(len(shortest) + 1) if all(text.endswith(shortest[i:]) for text in texts))


def _written(tokenizer: PreTrainedTokenizerBase, system: str | None, turns: list[str], *, answer: bool = True) -> str:
    """What the template writes for a conversation."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)]
    write = partial(tokenizer.apply_chat_template, messages, add_generation_prompt=answer, tokenize=False)
    return str(rendered(write, conversations=1, characters=1000))
