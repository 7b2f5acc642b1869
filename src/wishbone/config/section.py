"""What all sections of a configuration share: nothing unknown is taken, and fields that exclude each other are named.

Rules that involve several fields raise one error of type `conflict` whose context lists all of them.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]
"""A text of one line, without control characters."""


class Conflict(NamedTuple):
    """Several fields whose values exclude each other.

    `fields` are dotted names, within their section (`loss_weights`) or, if a rule spans sections, from the root
    (`training.eval_steps`); `text` names values, rule and remedy.
    """

    fields: tuple[str, ...]
    text: str


def refuse(conflicts: list[Conflict]) -> None:
    """Raise all conflicts as one pydantic error of type `conflict`; do nothing when there is none."""
    if conflicts:
        text = "; ".join(conflict.text for conflict in conflicts)
        raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": conflicts})


class Section(BaseModel):
    """A section of the configuration. Refuses unknown keys, values of another type, NaN and infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )
