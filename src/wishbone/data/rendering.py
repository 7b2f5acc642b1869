"""Pairs as their chat template writes them, without a word lost.

Each pair is written as it is given. Then `lost_text` looks for all that its messages say. Where something is missing,
or the template refuses the pair, the same messages are given in another form (`message_forms`), and the form that loses
least is taken, the earlier one of two. What the template leaves out of the last answer of a completion, such as its
thoughts, is written where the answer stands, because that is what the model has to learn to write. What is then still
missing is a loss of the row.

Thoughts of earlier turns are no loss where the template knows thoughts: it leaves them out of a conversation that goes
on, in training as in use (Qwen3, DeepSeek-R1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from wishbone.data import message_forms as forms
from wishbone.data.chat_template import REFUSALS
from wishbone.data.lost_text import (
    BLOCKS,
    CALLS,
    RESULTS,
    THOUGHT_KEYS,
    THOUGHTS,
    TOOLS,
    Part,
    lost_tools,
    marked_untrained,
    parts,
    search,
    unprinted_keys,
)
from wishbone.data.message_forms import Conversation, Message
from wishbone.data.template_shapes import Shapes
from wishbone.data.template_writer import TemplateWriter, Written
from wishbone.errors import RequestError

Pair = tuple[Conversation, Conversation, Conversation]

EARLIER_THOUGHTS = "the chat template leaves out the thoughts of earlier turns, as it does when the model is used"
VERBATIM = "the chat template leaves out a part of the answer (its thoughts), so the answer is written as it is given"
UNTRAINED = (
    "an answer within a completion is marked as not to be trained (weight 0; loss or train false) and is trained: "
    "every token of a completion is"
)
ONE_END = "the answer ends with the end-of-sequence token, which the chat template writes too; it is written once"
_FORMS: tuple[tuple[forms.Form, str], ...] = (
    (
        forms.with_known_keys,
        "thoughts, calls and refusals are given to the chat template as reasoning_content, tool_calls and content",
    ),
    (forms.with_text_content, "content that is a list of text blocks is written as one text"),
    (forms.with_some_content, ""),
    (forms.with_argument_texts, "the chat template takes the arguments of tool calls as JSON text"),
    (forms.with_block_content, "the chat template takes content as a list of text blocks"),
    (forms.with_null_content, ""),
)
_SHOWN_KEYS = 20
_MARK = "\ue0f0\ue0f1"


@dataclass(frozen=True)
class RenderedPair:
    """A pair as the model sees it.

    Attributes:
        prompt: the prompt with the header that opens the reply.
        chosen: the conversation of prompt and chosen completion.
        rejected: the conversation of prompt and rejected completion.
        lost: what the texts do not hold and why, one line, and on a second line the beginning of the first such text;
            None if they hold everything.
        notes: what was written in another way than the messages say, one sentence each.
        empty: whether nothing of a completion is left.
    """

    prompt: Written
    chosen: Written
    rejected: Written
    lost: str | None = None
    notes: tuple[str, ...] = ()
    empty: bool = False


def render_pairs(writer: TemplateWriter, pairs: Sequence[Pair]) -> list[RenderedPair | Exception]:
    """Write pairs of messages; in the place of a pair that the template refuses stands its refusal.

    Raises:
        RequestError: the template does not end, or takes too much memory.
    """
    pairs = [_map(pair, forms.with_argument_objects) for pair in pairs]
    shapes = Shapes(writer)
    try:
        drafts = _write(writer, pairs)
    except RequestError:
        raise
    except REFUSALS:
        return [_settled(writer, shapes, pair, _attempt(writer, shapes, pair)) for pair in pairs]
    return [
        _settled(writer, shapes, pair, _searched(writer, shapes, pair, draft))
        for pair, draft in zip(pairs, drafts, strict=True)
    ]


Texts = tuple[Written, Written, Written]


@dataclass(frozen=True)
class _Attempt:
    """A pair in one form, written and searched; without texts, but with a refusal, where the template refused it."""

    pair: Pair
    texts: Texts | None = None
    losses: tuple[tuple[str, Part], ...] = ()
    earlier_thoughts: bool = False
    refusal: Exception | None = None

    @property
    def cost(self) -> float:
        """How many messages lost something, each kind of loss counted; infinite where the template refuses."""
        if self.texts is None:
            return float("inf")
        return len({(place, part.message, part.what) for place, part in self.losses})


def _write(writer: TemplateWriter, pairs: Sequence[Pair]) -> list[Texts]:
    whole = [prompt + chosen for prompt, chosen, _ in pairs] + [prompt + rejected for prompt, _, rejected in pairs]
    prompts, written = writer.write([prompt for prompt, _, _ in pairs], whole)
    return list(zip(prompts, written[: len(pairs)], written[len(pairs) :], strict=True))


def _attempt(writer: TemplateWriter, shapes: Shapes, pair: Pair) -> _Attempt:
    try:
        return _searched(writer, shapes, pair, _write(writer, [pair])[0])
    except RequestError:
        raise
    except REFUSALS as refusal:
        return _Attempt(pair, refusal=refusal)


def _searched(writer: TemplateWriter, shapes: Shapes, pair: Pair, texts: Texts) -> _Attempt:
    prompt, *completions = pair
    losses: dict[tuple[str, Part], None] = {}
    for side, completion, written in zip(("chosen", "rejected"), completions, texts[1:], strict=True):
        conversation = prompt + completion
        found = search(conversation, written.text)
        for part in (*found.lost, *shapes.lost(conversation, found.unsure)):
            losses["prompt" if part.message < len(prompt) else side, part] = None
    if writer.tools:
        described = "" if writer.source and "tools" not in writer.source else texts[1].text
        losses |= {("tools", part): None for part in lost_tools(writer.tools, described)}
    earlier = {entry for entry in losses if entry[0] == "prompt" and entry[1].what == THOUGHTS}
    if not earlier or not _knows_thoughts(writer.source):
        return _Attempt(pair, texts, tuple(losses))
    return _Attempt(pair, texts, tuple(entry for entry in losses if entry not in earlier), earlier_thoughts=True)


def _knows_thoughts(source: str) -> bool:
    return any(word in source for word in ("</think>", *THOUGHT_KEYS))


def _settled(writer: TemplateWriter, shapes: Shapes, pair: Pair, first: _Attempt) -> RenderedPair | Exception:
    best, notes = first, []
    last = best.pair  # forms add up as long as the template refuses each
    for form, note in _FORMS if best.cost else ():
        changed = _map(last if best.texts is None else best.pair, form)
        if changed == (last if best.texts is None else best.pair):
            continue
        last = changed
        attempt = _attempt(writer, shapes, changed)
        if attempt.cost < best.cost:
            best = attempt
            notes += [note] * bool(note)
        if not best.cost:
            break
    if best.texts is None:
        return first.refusal or ValueError("refused")
    best, ended = _with_one_end(writer, shapes, best)
    best, verbatim = _with_whole_answers(writer, best)
    notes += [ONE_END] * ended + [VERBATIM] * verbatim
    notes += [EARLIER_THOUGHTS] * best.earlier_thoughts
    assert best.texts is not None
    if writer.unread_settings:
        notes.append(f"the chat template does not read chat_template_kwargs: {', '.join(writer.unread_settings):.200}")
    notes += _unread_marks(best.pair, [written.text for written in best.texts[1:]], writer.source)
    return RenderedPair(*best.texts, _told(best.losses, writer.source), tuple(notes), _any_empty(best))


def _unread_marks(pair: Pair, texts: Sequence[str], source: str) -> list[str]:
    """Sentences on keys of messages that the texts do not hold, and on answers that are marked as not to be trained."""
    prompt, *completions = pair
    keys = {
        key
        for completion, text in zip(completions, texts, strict=True)
        for key in unprinted_keys(prompt + completion, text, source)
    }
    shown = ", ".join(key if key.isprintable() else repr(key) for key in sorted(keys)[:_SHOWN_KEYS])
    found = [f"the chat template does not print these keys of messages: {shown:.200}"] * bool(keys)
    return found + [UNTRAINED] * any(map(marked_untrained, completions))


def _with_one_end(writer: TemplateWriter, shapes: Shapes, best: _Attempt) -> tuple[_Attempt, bool]:
    """Leave out an end-of-sequence token that the last answer and the template both write."""
    end = writer.special_end
    prompt, *completions = best.pair
    if not end or not any(_ends_with(completion, end) for completion in completions):
        return best, False
    cut = [_without_end(completion, end) for completion in completions]
    attempt = _attempt(writer, shapes, (prompt, cut[0], cut[1]))
    if attempt.texts is None or attempt.cost > best.cost:
        return best, False
    if not all(written.text.rstrip().endswith(end) for written in attempt.texts[1:]):
        return best, False
    return attempt, True


def _ends_with(completion: Conversation, end: str) -> bool:
    content = completion[-1].get("content") if completion else None
    return isinstance(content, str) and content.rstrip().endswith(end)


def _without_end(completion: Conversation, end: str) -> Conversation:
    if not _ends_with(completion, end):
        return completion
    content = str(completion[-1]["content"])
    while content.rstrip().endswith(end):
        content = content.rstrip().removesuffix(end)
    return [*completion[:-1], completion[-1] | {"content": content}]


def _with_whole_answers(writer: TemplateWriter, best: _Attempt) -> tuple[_Attempt, bool]:
    """Write the last answer of a completion as it is given, where the template leaves out a part of its content.

    A mark is written in its place, and the answer then takes the place of the mark. Where the prompt already opens a
    thought (`<think>` at its end), the answer goes on from there.
    """
    assert best.texts is not None
    prompt, *completions = best.pair
    texts, losses, changed = list(best.texts), best.losses, False
    for place, (side, completion) in enumerate(zip(("chosen", "rejected"), completions, strict=True), 1):
        last = len(prompt) + len(completion) - 1
        lost = {part for where, part in losses if where == side and part.message == last}
        content = completion[-1].get("content") if completion else None
        if not lost or not isinstance(content, str) or completion[-1].keys() != {"role", "content"}:
            continue
        marked = [*prompt, *completion[:-1], completion[-1] | {"content": _MARK}]
        try:
            _, (written,) = writer.write([], [marked])
        except RequestError:
            raise
        except REFUSALS:
            continue
        if written.ids is not None or written.text.count(_MARK) != 1:
            continue
        texts[place] = Written(_answered(written.text, content, texts[0].text))
        found = search(prompt + completion, texts[place].text).lost
        losses = tuple(entry for entry in losses if entry[1] not in lost or entry[1] in found)
        changed = True
    return replace(best, texts=(texts[0], texts[1], texts[2]), losses=losses), changed


def _answered(text: str, content: str, opened: str) -> str:
    """A text with the answer in the place of the mark; `opened` is the prompt with the header that opens the reply."""
    before, after = text.split(_MARK)
    if opened.startswith(before) and opened[len(before) :].strip() == "<think>" and "</think>" in content:
        return opened + content.lstrip().removeprefix("<think>").lstrip("\n") + after
    return before + content + after


def _any_empty(best: _Attempt) -> bool:
    """Whether a completion says nothing, or all that it says is lost."""
    prompt, *completions = best.pair
    lost = {part for _, part in best.losses}
    return any(parts(completion, len(prompt)) <= lost for completion in completions)


def _told(losses: Iterable[tuple[str, Part]], source: str) -> str | None:
    places: dict[str, list[str]] = {}
    first = ""
    for place, part in losses:
        first = first or part.text
        places.setdefault(part.what, []).append(place)
    if not places:
        return None
    lost = "; ".join(
        what if what == TOOLS else f"{what} ({', '.join(dict.fromkeys(where))})" for what, where in places.items()
    )
    lacks = ""
    if places.keys() & {CALLS, RESULTS, TOOLS} and source and "tool" not in source:
        lacks = ", which has no tools,"
    elif THOUGHTS in places and source and not _knows_thoughts(source):
        lacks = ", which has no thoughts,"
    elif BLOCKS in places:
        lacks = ", which takes text only,"
    return f"the chat template{lacks} loses {lost}\n{' '.join(first.split())[:60]}"


def _map(pair: Pair, form: forms.Form) -> Pair:
    """The pair with each message in a form; a conversation without a change is the same object."""
    prompt, chosen, rejected = (_mapped(conversation, form) for conversation in pair)
    return prompt, chosen, rejected


def _mapped(conversation: Conversation, form: forms.Form) -> Conversation:
    changed: list[Message] = [form(message) for message in conversation]
    if all(new is old for new, old in zip(changed, conversation, strict=True)):
        return conversation
    return changed
