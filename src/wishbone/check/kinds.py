"""The faults that are looked for: what each is called, why it hurts, what to do, and whether a clean copy drops it.

A *problem* is a pair that teaches nothing or is refused, or text that does not reach the model. A *warning* is a pair
that teaches something else than its author meant. A *note* is worth knowing and may be meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wishbone.errors import counted_of

Severity = Literal["problem", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        severity: "problem", "warning" or "note".
        label: its name.
        title: what such a pair is or has.
        why: why it hurts.
        remedy: what to do.
        dropped: whether a clean copy leaves such pairs out.
    """

    severity: Severity
    label: str
    title: str
    why: str
    remedy: str
    dropped: bool = False


UNREADABLE = "unreadable"
CONTRADICTION, DUPLICATE, HELD_OUT, LENGTH = "contradiction", "duplicate", "held_out", "length"

KINDS: dict[str, Kind] = {
    UNREADABLE: Kind(
        "problem",
        "not a pair",
        "not a pair",
        "A run refuses them, or leaves them out with data.invalid_rows: drop.",
        "Correct them; each is named with its reason.",
        dropped=True,
    ),
    "refused": Kind(
        "problem",
        "refused by the template",
        "refused by the chat template",
        "The template raises an error for them, so a run refuses them.",
        "Correct their messages, or choose a template that takes them.",
        dropped=True,
    ),
    "lost_text": Kind(
        "problem",
        "text lost in the template",
        "text lost in the chat template",
        "What the template leaves out never reaches the model, so it learns from another pair than you wrote.",
        "Choose a template that writes it, or move the text where it does; data.lost_text: drop leaves such pairs out.",
        dropped=True,
    ),
    "image": Kind(
        "problem",
        "image not readable",
        "an image that cannot be trained",
        "A run refuses them, or leaves them out with data.invalid_rows: drop.",
        "Put the file where the row says, inside the data's folder, or make it smaller; each is named with its reason.",
        dropped=True,
    ),
    "empty": Kind(
        "problem",
        "empty completion",
        "an empty completion",
        "There is no answer to prefer or to reject, so a run refuses them.",
        "Write the completion, or drop the pair.",
        dropped=True,
    ),
    "identical": Kind(
        "problem",
        "same completions",
        "the same chosen and rejected completion",
        "Their difference is zero, so nothing is learned, and a run refuses them.",
        "Correct one side, or drop the pair.",
        dropped=True,
    ),
    "too_long": Kind(
        "problem",
        "prompt too long",
        "a prompt that fills every position of the model",
        "Nothing of the completions is left after truncation.",
        "Shorten the prompt, drop the pair, or set data.truncation: keep_end.",
    ),
    CONTRADICTION: Kind(
        "warning",
        "contradiction",
        "contradicts another pair",
        "The same prompt stands there with chosen and rejected swapped; the two cancel each other.",
        "Keep the right one. A clean copy has neither, because nothing tells which it is.",
        dropped=True,
    ),
    DUPLICATE: Kind(
        "warning",
        "repeated pair",
        "occurred before",
        "They count twice, and data.eval_fraction may put one of them on each side.",
        "Keep one of each.",
        dropped=True,
    ),
    HELD_OUT: Kind(
        "warning",
        "held-out prompt",
        "a prompt that is held out, too",
        "The model learns from what it is measured on, so held-out loss and accuracy are too good.",
        "Drop them from the training data.",
        dropped=True,
    ),
    "special_tokens": Kind(
        "warning",
        "special token in a text",
        "special tokens or chat markup in the text",
        "The model sees a turn begin or end where none does, or two of these tokens where one belongs.",
        "Remove them: the chat template writes them. They belong in texts only if those are trained as they are.",
    ),
    "more_speakers": Kind(
        "warning",
        "other speaker in a completion",
        "a user or system message inside a completion",
        "Every token of a completion is trained, so the model learns to write the user's part.",
        "Move the turns before the last answer into the prompt.",
    ),
    "answered": Kind(
        "warning",
        "answered prompt",
        "a prompt that ends with an assistant message",
        "The completion is then a second answer, a turn that never happens when the model is used.",
        "End the prompt with the user's message, or join both answers.",
    ),
    "same_speaker": Kind(
        "note",
        "same speaker twice",
        "two user or two assistant messages in a row",
        "Some chat templates (Gemma, Mistral) refuse such conversations.",
        "Join the two messages, or look for a turn that is missing.",
    ),
    "late_system": Kind(
        "note",
        "late system message",
        "a system message that is not the first message",
        "Many chat templates read only the first one, or refuse others.",
        "Move it to the beginning.",
    ),
    "blank_prompt": Kind(
        "note",
        "empty prompt",
        "an empty prompt",
        "The completions are then compared without a question.",
        "Look whether the prompt's column has the name that is read.",
    ),
    "near_identical": Kind(
        "note",
        "nearly the same",
        "nearly the same chosen and rejected completion",
        "Where few tokens differ, DPO tends to make both completions less likely.",
        "Look whether the difference is meant; preference.loss=[sigmoid,sft] holds the chosen one up.",
    ),
    "rewritten": Kind(
        "note",
        "written in another form",
        "written in another form than the messages have",
        "The chat template would refuse them or lose a part of them as they are.",
        "Look at one as the model sees it.",
    ),
    "moved_boundary": Kind(
        "note",
        "moved prompt end",
        "a prompt whose end is tokenized differently before a completion",
        "Some tokens at the prompt's end count as part of the completion, or are not seen.",
        "End the prompt where a token ends; usually leave out a space at its end.",
    ),
    LENGTH: Kind(
        "note",
        "longer chosen side",
        "a longer chosen than rejected completion",
        "Where length tells which side is chosen, the model may learn the length alone.",
        "Even out the lengths, or use a length-normalized loss (simpo, rdpo) or preference.ld_alpha.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Pairs of one kind of fault.

    Attributes:
        name: a key of `KINDS`.
        count: how many pairs (of "unreadable": rows).
        of: how many there are.
        rows: the places of the first ones, such as "line 17".
        details: what was found, a line for each of a few; may be empty.
    """

    name: str
    count: int
    of: int
    rows: tuple[str, ...]
    details: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What holds for every fault of this kind."""
        return KINDS[self.name]

    def told(self) -> str:
        """How many, of how many, and what: `1 of 9 pairs: an empty completion`."""
        return f"{counted_of(self.count, self.of, 'row' if self.name == UNREADABLE else 'pair')}: {self.kind.title}"

    def lines(self) -> list[str]:
        """What was found, and the places of the first pairs where that does not name them all."""
        named = len(self.details) * (2 if self.name == CONTRADICTION else 1)  # a detail of those names two pairs
        more = " ..." if self.count > len(self.rows) else ""
        places = [", ".join(self.rows) + more] if len(self.rows) > named else []
        return [*self.details, *places]
