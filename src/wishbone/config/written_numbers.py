"""Numbers as people write them, in the form that is accepted here: `2k`, `4,096`, `3%`, `1x10^-5`, `2048 tokens`.

They are not taken silently, because some may be two numbers. A message says which one to write.
"""

from __future__ import annotations

import re

from wishbone.config.document import FLOAT

THOUSANDS = re.compile(r"([0-9]{1,6}) ?([kKmM])")
"""A whole number in thousands or millions, which are powers of 10 or of 2."""
GROUPED = re.compile(r"[0-9]{1,3}(?:[,_' ][0-9]{3})+")
"""A whole number whose digits stand in groups of three."""
PERCENT = re.compile(r"([0-9]{1,3}(?:[.,][0-9]{1,6})?) ?%")
COUNTED = re.compile(r"([0-9][0-9.,_' kKmM]*) ?(?:token|step|pair|gpu)s?", re.IGNORECASE | re.ASCII)
"""A whole number, and what it counts."""
MEASURED = re.compile(r"([0-9.][0-9.,eE+-]*) ?(?:epochs?|gi?b|billion|b|f)", re.IGNORECASE | re.ASCII)
"""A number, and its unit."""
OF_TEN = re.compile(r"(?:([0-9]{1,9}(?:\.[0-9]{1,9})?) ?[x*\u00d7\u00b7] ?)?10 ?(?:\^|\*\*)? ?([-\u2212][0-9]{1,3})")
"""A number times a negative power of ten."""
FRACTION = re.compile(r"([0-9]{1,6}) ?/ ?([1-9][0-9]{0,5})")
DIGITS = re.compile(r"[0-9]+")


def number_meant(text: str, *, whole: bool) -> str | None:
    """Return the number that a text means as it is written here, or None where it means none.

    Args:
        text: what was given.
        whole: a whole number is asked for.

    Returns:
        the number; `2000 or 2048` where a text may mean both.
    """
    if whole and (found := THOUSANDS.fullmatch(text)):
        power = 1 if found[2] in "kK" else 2
        return f"{int(found[1]) * 1000**power} or {int(found[1]) * 1024**power}"
    if whole and GROUPED.fullmatch(text):
        return "".join(DIGITS.findall(text))
    if not whole and (found := PERCENT.fullmatch(text)):
        return f"{float(found[1].replace(',', '.')) / 100:g}"
    if not whole and (found := FRACTION.fullmatch(text)):
        return f"{int(found[1]) / int(found[2]):g}"
    if not whole and (found := OF_TEN.fullmatch(text)):
        return f"{found[1] or 1}e{found[2]}".replace("\u2212", "-")
    if found := (COUNTED if whole else MEASURED).fullmatch(text):
        number = found[1].strip()
        return number if _is_number(number, whole=whole) else number_meant(number, whole=whole)
    joined = re.sub(r"(?<=[0-9])[_' ](?=[0-9])", "", text)
    for other in (joined, text.replace(",", ".", 1), text.replace("\u2212", "-")):
        if other != text and _is_number(other, whole=whole):
            return other
    return None


def _is_number(text: str, *, whole: bool) -> bool:
    return DIGITS.fullmatch(text) is not None or (not whole and FLOAT.fullmatch(text) is not None)
