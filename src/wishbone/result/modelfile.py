"""A Modelfile, from which Ollama makes a model: `ollama create NAME -f Modelfile`.

Its TEMPLATE is a template of Go. Texts of the tokenizer are quoted, so that none of them is read as an instruction.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from wishbone.errors import RequestError
from wishbone.result.chat_format import ChatFormat, chat_format

FENCE = '"""'
KEPT = "\n\r\t"
"""Letters that are not printable and that Ollama keeps."""


def modelfile(
    gguf: str, tokenizer: PreTrainedTokenizerBase, *, ends: list[str], as_text: bool, system: str | None
) -> tuple[str, str | None]:
    """Return a Modelfile, and a note where Ollama has to find the template itself.

    Args:
        gguf: name of the GGUF file beside it.
        tokenizer: of the model.
        ends: tokens that end an answer.
        as_text: the model continues texts, and knows no turns.
        system: system prompt of the run.

    Raises:
        RequestError: a text holds what a Modelfile cannot quote.
    """
    lines = [f"FROM ./{gguf}"]
    note = None
    if as_text:
        lines.append(f"TEMPLATE {FENCE}{{{{ .Prompt }}}}{FENCE}")
    elif found := chat_format(tokenizer):
        ids = list(tokenizer("a")["input_ids"])
        begins = str(tokenizer.bos_token or "") if ids and ids[0] == tokenizer.bos_token_id else ""
        lines.append(f"TEMPLATE {FENCE}{_quotable(_go(found, begins))}{FENCE}")
    else:
        note = "the chat template is more than fixed texts around turns, so Ollama takes the one in the GGUF file"
    if system and not as_text:
        lines.append(f"SYSTEM {FENCE}{_quotable(system)}{FENCE}")
    for end in ends:
        if not end.isprintable() or '"' in end:
            raise RequestError(f"the end token {end!r} cannot be written into a Modelfile; use --gguf")
        lines.append(f'PARAMETER stop "{end}"')
    return "\n".join(lines) + "\n", note


def _go(form: ChatFormat, begins: str) -> str:
    """The format as a template of Go, without the token that llama.cpp puts at the beginning itself."""
    unasked = _text(form.unasked.removeprefix(begins))
    begin = unasked
    if form.system is not None:
        before, after = form.system
        asked = f"{_text(before.removeprefix(begins))}{{{{ .System }}}}{_text(after)}"
        begin = f"{{{{ if .System }}}}{asked}{{{{ else }}}}{unasked}{{{{ end }}}}"
    user, assistant = (
        f"{_text(before)}{{{{ .Content }}}}{_text(after)}" for before, after in (form.user, form.assistant)
    )
    turns = (
        f'{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}'
        f'{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ end }}}}{{{{ end }}}}'
    )
    return f"{begin}{turns}{_text(form.answer)}"


def _text(text: str) -> str:
    """A text in a template of Go; what begins an action there is quoted."""
    return text.replace("{{", '{{ "{{" }}')


def _quotable(text: str) -> str:
    if FENCE in text or text.endswith('"'):
        raise RequestError("a text of the model holds three double quotes, which a Modelfile cannot hold; use --gguf")
    if lost := next((letter for letter in text if not letter.isprintable() and letter not in KEPT), None):
        raise RequestError(f"a text of the model holds {lost!r}, which Ollama drops from a Modelfile; use --gguf")
    return text
