"""HTML that is escaped by construction: `element` and `join` escape every text and return `Markup`.

    element("td", "<b>")                 ->  <td>&lt;b&gt;</td>
    element("td", element("b", "bold"))  ->  <td><b>bold</b></td>

There is no other way to add text to a page, so escaping cannot be forgotten.
"""

from __future__ import annotations

from html import escape

VOID = frozenset({"meta", "br", "hr", "input"})
KEPT_CONTROLS = frozenset("\n\t")
Attribute = str | int | float | None


class Markup(str):
    """Text that already is HTML. Only this module and constants of the program create it."""

    __slots__ = ()


def element(name: str, *children: str | None, **attributes: Attribute) -> Markup:
    """Return an element.

    Args:
        name: of the element, a constant of the program.
        children: text, which is escaped, or `Markup`, which is not; None is skipped.
        attributes: `_` in a name stands for `-`, and is dropped at its end (`class_`); None is skipped.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(clean(_written(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Return the children one after another, text escaped."""
    return Markup(
        "".join(child if isinstance(child, Markup) else escape(clean(child)) for child in children if child is not None)
    )


def clean(text: str) -> str:
    """Replace characters that a page cannot contain: control characters (except tab and line break), surrogates."""
    if text.isprintable():
        return text
    return "".join("\N{REPLACEMENT CHARACTER}" if _forbidden(letter) else letter for letter in text)


def _forbidden(letter: str) -> bool:
    return (
        (letter < " " and letter not in KEPT_CONTROLS) or "\x7f" <= letter <= "\x9f" or "\ud800" <= letter <= "\udfff"
    )


def _written(value: str | int | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
