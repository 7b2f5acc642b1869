"""Whether the file of an image is whole, as its last bytes tell: found before a run, without unpacking its pixels.

A file whose copy or download broke off has a beginning with the right size and no end. Each format marks its end in a
way of its own; a PNG has a checksum for each of its parts, too. "No" only means that the file has to be unpacked to
know: some writers leave the mark out, or put other things behind it.
"""

from __future__ import annotations

import struct
import zlib

BEHIND_PIXELS = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
"""Parts of a PNG that can say how it is turned; behind its pixels they are only found with these."""


def has_end(kind: str | None, content: bytes) -> bool:
    """Return whether a file has its end, and its turning, if it has one, before its pixels.

    Args:
        kind: its format, as Pillow names it.
        content: the whole file.
    """
    if kind == "PNG":
        return _is_whole_png(content)
    if kind in ("JPEG", "MPO"):
        return content.endswith(b"\xff\xd9")
    if kind == "GIF":
        return content.endswith(b";")
    if kind == "WEBP":
        return len(content) >= 8 + int.from_bytes(content[4:8], "little")
    if kind == "BMP":
        return len(content) >= int.from_bytes(content[2:6], "little") > 0
    return False


def _is_whole_png(content: bytes) -> bool:
    at, pixels = 8, False
    while at + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        end = at + 8 + length
        if end + 4 > len(content) or zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4]):
            return False
        if name == b"IEND":
            return True
        if pixels and name in BEHIND_PIXELS:
            return False
        pixels = pixels or name == b"IDAT"
        at = end + 4
    return False
