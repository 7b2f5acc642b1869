"""HTML that is escaped by construction: text is data until `element` or `document` makes markup of it.

    element("td", "<b>")                 ->  <td>&lt;b&gt;</td>
    element("td", element("b", "bold"))  ->  <td><b>bold</b></td>

There is no other way to put text into a page, so no place can forget to escape it.
"""

from __future__ import annotations

from html import escape

VOID = frozenset({"meta", "br", "hr"})
KEPT_CONTROLS = frozenset("\n\t")
Attribute = str | int | float | None


class Markup(str):
    """Text that is HTML already. Only this module and constants of the program make it."""

    __slots__ = ()


def element(name: str, *children: str | None, **attributes: Attribute) -> Markup:
    """Return an element.

    Args:
        name: of the element, part of the program.
        children: text, which is escaped, or `Markup`, which is not; None is left out.
        attributes: `_` in a name stands for `-`, one at its end is dropped (`class_`); None is left out.
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
    """Replace what a page cannot hold: control characters but tab and line break, and halves of surrogate pairs."""
    if text.isprintable():
        return text
    return "".join("\N{REPLACEMENT CHARACTER}" if _forbidden(letter) else letter for letter in text)


def _forbidden(letter: str) -> bool:
    return (
        (letter < " " and letter not in KEPT_CONTROLS) or "\x7f" <= letter <= "\x9f" or "\ud800" <= letter <= "\udfff"
    )


def _written(value: str | int | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
