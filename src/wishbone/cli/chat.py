"""`wishbone chat`: a conversation with what a run learned, in a terminal or a pipe."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from wishbone.cli.console import plain, refuse, say, screen
from wishbone.cli.finished import RunDirectory, TrustRemoteCode, opened_run
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.request import requested
from wishbone.errors import RequestError
from wishbone.run.phase_display import phases_shown

if TYPE_CHECKING:
    from wishbone.result.conversation import Conversation, Reply

INTERRUPTED = 130
COMMANDS = {
    "/base": "answer the last question as the model was before training",
    "/reset": "begin a new conversation",
    "/system TEXT": "change the system prompt, and begin a new conversation; without TEXT: none",
    "/help": "show this",
    "/quit": "end",
}
NAMES = ", ".join(name.split()[0] for name in COMMANDS)
ENDS = ("/quit", "/exit")


def chat(
    run: RunDirectory,
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="System prompt; by default the run's data.system_prompt.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=131072, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[
        float, typer.Option(min=0, max=10, help="0: the most likely token each time; above: drawn at random.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the draws of each answer.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as one line of JSON.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to what a run learned. From a pipe each line is a question of its own."""
    settle_libraries()
    with requested():
        if sys.stdin is None:
            raise RequestError("standard input is closed, so there is no question; type one or pipe it in")
        finished = opened_run(run, trust_remote_code=trust_remote_code)
        with screen(error=True).status("loading torch and the model"):
            from wishbone.result.conversation import Conversation, Decoding
            from wishbone.result.finished_run import was_trained_on_texts
            from wishbone.result.trained_model import TrainedModel

            model = TrainedModel(finished)
            as_text = was_trained_on_texts(finished, model.tokenizer)
        if system and as_text:
            raise RequestError("--system: the run was trained on texts without a chat template; leave it out")
        asked = finished.config.data.system_prompt if system is None else system
        decoding = Decoding(max_new_tokens, temperature, seed)
        conversation = Conversation(model, as_text, None if as_text else asked or None, decoding)
    if model.reads_images:
        _note("the run was trained on images; a word with an @ shows one: @cat.png What is it?")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    with phases_shown(screen(error=True)):  # a long question takes minutes on a CPU
        if sys.stdin.isatty():
            _converse(conversation, as_json)
        else:
            _answer_lines(conversation, as_json)


def _converse(conversation: Conversation, as_json: bool) -> None:
    """Questions and answers in turn, until /quit or the end of input."""
    with suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited and come back with the arrow keys)
    form = "each line is continued as a text, the form that was trained" if conversation.as_text else "chat"
    _note(f"{form}; Ctrl-C stops an answer; {NAMES}")
    while True:
        try:
            line = input("> ")
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo()
            _note("/quit or Ctrl-D ends the conversation")
            continue
        word, _, rest = line.strip().partition(" ")
        try:
            if word in ENDS:
                return
            if _is_command(word):
                _obey(conversation, word, rest.strip())
            elif word:
                _reply(conversation, line, as_json)
        except RequestError as error:
            refuse(error.problems)


def _is_command(word: str) -> bool:
    """Whether a line that begins with this word asks nothing; a path with further slashes is a question."""
    return word.startswith("/") and "/" not in word[1:] and word != "/base"


def _obey(conversation: Conversation, word: str, rest: str) -> None:
    """Carry out a command that answers nothing."""
    if word == "/reset":
        conversation.reset()
        _note("a new conversation")
    elif word == "/system":
        if conversation.as_text:
            raise RequestError("/system: the run was trained on texts without a chat template, which have none")
        conversation.system = rest or None
        conversation.reset()
        _note("a new conversation " + ("with this system prompt" if rest else "without a system prompt"))
    elif word == "/help":
        for name, what in COMMANDS.items():
            say(what, marker=f"  {name:<13} ", style="bold", error=True)
    else:
        raise RequestError(f"{word} is not a command; {NAMES} are. To ask it, put a word before it")


def _answer_lines(conversation: Conversation, as_json: bool) -> None:
    """Answer each line of standard input by itself; a question that cannot be asked is named and left out."""
    refused = False
    for number, line in enumerate(_lines(), 1):
        word, _, rest = line.partition(" ")
        if word in ENDS:
            break
        if not line:
            continue
        if line != "/base":
            conversation.turns.clear()
        try:
            if _is_command(word):
                _obey(conversation, word, rest.strip())
                continue
            reply = _reply(conversation, line, as_json)
        except RequestError as error:
            refuse([f"line {number}: {problem}" for problem in error.problems])
            refused = True
            continue
        if reply.end == "person":
            raise typer.Exit(INTERRUPTED)
    if refused:
        raise typer.Exit(2)


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        yield line.strip()


def _reply(conversation: Conversation, line: str, as_json: bool) -> Reply:
    """Answer a question, or with /base the last one as the model was, and print it."""
    from wishbone.result.shown_images import named_without_mark

    for name in named_without_mark(line) if conversation.model.reads_images else []:
        _note(f"{name} is read as text; @{name} shows the image")
    before = line.strip() == "/base"
    show = _nothing if as_json else _show
    reply = conversation.ask_before(show) if before else conversation.ask(line, show)
    if as_json:
        question = conversation.last_question
        shown = {"question": question, "model": "base" if before else "trained", "answer": reply.text, "end": reply.end}
        typer.echo(json.dumps(shown))
    else:
        typer.echo()
    return reply


def _show(piece: str) -> None:
    """Print a piece of an answer, without control characters, at once."""
    typer.echo(plain(piece.expandtabs(4)).plain, nl=False)
    sys.stdout.flush()


def _note(text: str) -> None:
    say(text, marker="note: ", style="bold", error=True)


def _nothing(_: str) -> None:
    pass
