"""From a row of a known layout to its pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from wishbone.data import messages as chat
from wishbone.data.formats.fields import Fields, Row, is_empty
from wishbone.data.formats.images import Images, with_images
from wishbone.data.formats.layouts import EXTRAS, LAYOUTS
from wishbone.data.formats.pairing import Matches, PairRule, match
from wishbone.data.formats.prompt import CONTEXT, completed, divide
from wishbone.data.messages import Message, Misfit
from wishbone.data.written_values import looks_structured, read_structure
from wishbone.errors import RequestError

ALWAYS_READ = frozenset((*CONTEXT, *EXTRAS))
"""Columns that every layout reads, or refuses where they say something that does not fit."""


_AS_GIVEN = Matches([(0, 1)], 0, 0)


class RowPairs(NamedTuple):
    """The pairs of a row.

    Attributes:
        pairs: prompt, chosen, rejected: three texts or three lists of messages, whose roles are system, user,
            assistant, tool and which have no key that is None. `tools` (JSON text or list) and `chat_template_kwargs`
            (dict) are added if the row has them, and so are `images`, `{"bytes": ..., "path": ...}` each.
        ties: pairs of the rule that have the same score and are left out.
        narrow: pairs of the rule that differ by less than the least margin and are left out.
        unscored: completions without a score, which are left out.
        used: columns that were read.
        turned: whether texts became turns.
    """

    pairs: list[dict[str, Any]]
    ties: int
    narrow: int
    unscored: int
    used: set[str]
    turned: bool = False


def read_pairs(
    row: Row,
    layout: str,
    *,
    system_prompt: str | None = None,
    rule: PairRule | None = None,
    turns: bool = False,
    images: Images = "refuse",
) -> RowPairs:
    """Rewrite a row of a known layout as pairs.

    Args:
        row: the row; it is left as it is.
        layout: a key of `FORMATS`.
        system_prompt: added before a conversation that has no system message; refused for texts.
        rule: which scored completions become pairs; None: the best against the worst.
        turns: whether three texts become one user turn and one answer; not where the completions contain the prompt.
        images: what happens to images: "refuse", "read" (they stand in `images` of each pair) or "drop".

    Raises:
        RequestError: the row does not fit; one problem for each column, without the number of the row.
    """
    try:
        return rewrite(row, layout, system_prompt=system_prompt, rule=rule, turns=turns, images=images)
    except Misfit as misfit:
        raise RequestError(str(misfit)) from None


def rewrite(
    row: Row,
    layout: str,
    *,
    system_prompt: str | None = None,
    rule: PairRule | None = None,
    turns: bool = False,
    images: Images = "refuse",
) -> RowPairs:
    """The same; raises Misfit where two columns do not fit together."""
    fields = Fields(row)
    answers = LAYOUTS[layout].read(fields)
    extras = {
        name: value
        for name, reader in (("tools", _tools), ("chat_template_kwargs", _kwargs))
        if (value := fields.read(name, reader)) is not None
    }
    if fields.problems:
        raise RequestError(fields.problems)
    matched = match(answers.scores, rule or PairRule()) if answers.scores else _AS_GIVEN
    pairs = []
    turned = False
    for better, worse in matched.pairs:
        pair = divide((answers.prompt, answers.completions[better], answers.completions[worse]))
        prompt, chosen, rejected = completed(pair, fields)
        if turns and isinstance(prompt, str) and answers.prompt is not None:
            prompt, chosen, rejected = _as_turns(prompt, chosen, rejected)
            turned = True
        (prompt, chosen, rejected), pictures = with_images((prompt, chosen, rejected), fields, images)
        if isinstance(prompt, str) and extras:
            raise Misfit(
                f"{next(iter(extras))} is beside texts that no chat template renders; write messages, or give every "
                "row a column of this name and one for the prompt"
            )
        if system_prompt is not None:
            prompt = _with_system(prompt, system_prompt)
        shown = {"images": pictures} if pictures else {}
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected, **shown, **extras})
    return RowPairs(pairs, matched.ties, matched.narrow, answers.unscored, fields.used, turned)


def _as_turns(prompt: str, chosen: str, rejected: str) -> tuple[list[Message], list[Message], list[Message]]:
    """Texts as a conversation; answers that follow a dialogue's "Assistant:" begin with a space, which goes with it."""
    turns = chat.asked(prompt)
    if turns != chat.user_turn(prompt):
        chosen, rejected = chosen.strip(), rejected.strip()
    return turns, chat.completion(chosen), chat.completion(rejected)


def _with_system(prompt: Any, system_prompt: str) -> Any:
    if isinstance(prompt, str):
        raise Misfit("is text, not a conversation, so data.system_prompt cannot be added; leave it out")
    return prompt if prompt[0]["role"] == "system" else [{"role": "system", "content": system_prompt}, *prompt]


def _tools(value: Any) -> str | list[Any] | None:
    """The tools, as a list or its JSON; None if there are none."""
    if is_empty(value):
        return None
    given = _structure(value)
    if given is None:
        return None
    tools = [given] if isinstance(given, Mapping) and given else given
    if not isinstance(tools, list):
        raise Misfit("must be a list of tools, or the JSON of one")
    read = [chat.parse_json(tool) if isinstance(tool, str) else tool for tool in tools]
    for number, tool in enumerate(read, 1):
        if not isinstance(tool, Mapping):
            raise Misfit(f"item {number} is {chat.kind(tools[number - 1])}; it must be an object, or the JSON of one")
    chat.storable(read)
    if not read:
        return None
    return value if isinstance(value, str) and read == chat.parse_json(value) else read


def _kwargs(value: Any) -> dict[str, Any] | None:
    if is_empty(value):
        return None
    settings = _structure(value)
    return None if settings is None else dict(chat.storable(chat.mapping(settings))) or None


def _structure(value: Any) -> Any:
    """What a text writes in JSON or as Python prints it; None for null, and other values as they are."""
    if not isinstance(value, str) or not (value.strip() in ("null", "None") or looks_structured(value)):
        return value
    return read_structure(value)
