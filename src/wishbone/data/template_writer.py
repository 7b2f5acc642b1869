"""Conversations written as text by the chat template of a tokenizer, within limits on time and memory.

A tokenizer that brings its own `apply_chat_template`, or settings that are meant for the tokenizer, may give ids that
no call on the text would give. Then the ids are taken as they come, and the text is what they decode to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from wishbone.data.chat_template import rendered
from wishbone.errors import RequestError

Ids = list[int]
Conversation = list[dict[str, Any]]

_TEMPLATE_ARGUMENTS = {"conversation", "tools", "documents", "chat_template", "continue_final_message", "kwargs"}
_RESERVED = {"conversation", "tools", "tokenize", "add_generation_prompt", "return_dict"}
_TOKENIZER_ARGUMENTS = set(signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - _TEMPLATE_ARGUMENTS


@dataclass(frozen=True)
class Written:
    """A conversation as the chat template writes it.

    Attributes:
        text: what the model sees.
        ids: the token ids, if the tokenizer gave them itself; None: those of the text, without further special tokens.
    """

    text: str
    ids: Ids | None = None


class TemplateWriter:
    """Writes conversations with one chat template, one list of tools and one set of settings.

    Attributes:
        source: the template's own text; empty if it is not known.
        tools: descriptions of tools that the template gets, or None.
        unread_settings: names of settings that the template's text does not hold as a word.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None, settings: Mapping[str, Any] | None
    ) -> None:
        self.tools = tools or None
        self._tokenizer = tokenizer
        self._settings = dict(settings or {})
        if reserved := sorted(self._settings.keys() & _RESERVED):
            raise RequestError(
                f"chat_template_kwargs names {', '.join(reserved)}, which every pair sets by itself; leave it out "
                "(tools belong into a column of their own)"
            )
        template = self._settings.get("chat_template") or tokenizer.chat_template
        self.source = template if isinstance(template, str) else "".join((template or {}).values())
        own = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        known = _TOKENIZER_ARGUMENTS | {"chat_template", "continue_final_message"}
        unknown = set() if own else self._settings.keys() - known
        self.unread_settings = sorted(unknown - set(re.findall(r"\w+", self.source))) if unknown else []
        self._gives_ids = own or bool(self._settings.keys() & _TOKENIZER_ARGUMENTS)
        if not self._gives_ids and not template:
            raise RequestError(
                "the rows are chat messages, but the tokenizer has no chat template. Choose a model with one (often "
                "named -Instruct or -chat), set tokenizer.chat_template, or give prompt, chosen and rejected as texts"
            )

    @property
    def special_end(self) -> str | None:
        """The end-of-sequence token, or None."""
        token: str | None = self._tokenizer.eos_token
        return token

    def write(
        self, prompts: Sequence[Conversation], conversations: Sequence[Conversation]
    ) -> tuple[list[Written], list[Written]]:
        """Write prompts, each with the header that opens the reply, and whole conversations.

        Texts and ids are those of `tokenizer.apply_chat_template(messages, tools=tools, **settings)`.

        Raises:
            RequestError: the template does not end, or takes too much memory.
            chat_template.REFUSALS: the template refuses a conversation.
        """
        if not all(prompts):
            raise ValueError("the prompt has no messages")
        texts = partial(self._tokenizer.apply_chat_template, tools=self.tools, tokenize=False, **self._settings)

        def write() -> list[Written]:
            if self._gives_ids:
                opened = [self._ids(prompt, add_generation_prompt=True) for prompt in prompts]
                return opened + [self._ids(conversation) for conversation in conversations]
            found = texts(list(prompts), add_generation_prompt=True) if prompts else []
            return [Written(text) for text in (*found, *(texts(list(conversations)) if conversations else []))]

        written = rendered(
            write, conversations=len(prompts) + len(conversations), characters=_characters(conversations)
        )
        return written[: len(prompts)], written[len(prompts) :]

    def _ids(self, conversation: Conversation, **more: Any) -> Written:
        found = self._tokenizer.apply_chat_template(
            conversation, tools=self.tools, tokenize=True, return_dict=True, **self._settings, **more
        )["input_ids"]
        ids = [int(number) for number in np.asarray(found).reshape(-1)]  # a row's settings can ask for a tensor
        return Written(str(self._tokenizer.decode(ids)), ids)


def _characters(conversations: Sequence[Conversation]) -> int:
    """About how many characters conversations have; counts contents that are plain text."""
    contents = (message.get("content") for conversation in conversations for message in conversation)
    return sum(len(content) for content in contents if isinstance(content, str))
