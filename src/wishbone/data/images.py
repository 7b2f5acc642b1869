"""Images of a row: from what a cell holds to a picture in memory, with limits on what is opened.

Cells hold pictures in several ways: opened (PIL), as a file's content (`bytes`, or `{"bytes": ...}` as `datasets`
stores them), as a path, as a data URL. What comes from outside is not trusted: a file may be huge, may unpack into far
more pixels than it has bytes (a decompression bomb), may be no image, and a path may lead anywhere. Nothing is fetched
from the network.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wishbone.data.image_files import has_end
from wishbone.errors import RequestError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 64 * 2**20
"""Largest file of an image that is read."""

MOST_PIXELS = 50_000_000
"""Most pixels of an image that is unpacked: 150 MB of memory."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Kinds of files that are opened; Pillow knows others whose readers run other programs."""

DEEP = ("I", "F")
"""Beginnings of Pillow's modes of one channel with 16 or 32 bits; as RGB, values above 255 become 255."""

TURNED = frozenset({5, 6, 7, 8})
"""Values of the EXIF tag Orientation that exchange width and height."""
ORIENTATION = 0x0112

_DATA_URL = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[\w+/-]{256,}={0,2}")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def row_images(row: Mapping[str, Any]) -> list[Any]:
    """Return what a row holds in `images` (a list) or `image` (one, which comes first as in TRL); empty without any."""
    if row.get("image") is not None:
        return [row["image"]]
    found = row.get("images")
    if found is None:
        return []
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str | bytes) else [found]


def read_image(cell: Any, folder: Path | None = None) -> Image:
    """Return the picture that a cell holds, unpacked and turned as its EXIF tag says.

    Args:
        cell: a PIL image, which is returned as it is; bytes; `{"bytes": ..., "path": ...}`, also with its own
            `folder`, which no path leaves; a data URL; or a path.
        folder: where relative paths begin and which no path may leave; None: the working directory, any path.

    Raises:
        RequestError: no image, a kind of file that is not opened, too large, an address on the network, or a path that
            leaves the folder.
    """
    from PIL.ImageOps import exif_transpose

    if _is_picture(cell):
        return cell  # type: ignore[no-any-return]
    opened = _opened(cell, _content(cell, folder))
    _unpack(cell, opened)
    return exif_transpose(opened) if opened.getexif().get(ORIENTATION) is not None else opened


def image_size(cell: Any, folder: Path | None = None) -> tuple[int, int]:
    """Return width and height in pixels of what `read_image` returns; errors as there.

    A file is unpacked only where its end is missing or its turning stands behind its pixels.
    """
    if _is_picture(cell):
        return (cell.width, cell.height)
    return _shown_size(cell, _content(cell, folder))


def size_and_digest(cell: Any) -> tuple[tuple[int, int], bytes]:
    """Return the `image_size` of an image that is not opened, and 128 bits that hash its file, which is read once."""
    content = _content(cell, None)
    return _shown_size(cell, content), hashlib.blake2b(content, digest_size=16).digest()


def image_digest(image: Image) -> bytes:
    """Return 128 bits that hash the pixels of a picture."""
    digest = hashlib.blake2b(f"{image.mode} {image.size} {image.getpalette()}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def _is_picture(cell: Any) -> bool:
    from PIL.Image import Image

    return isinstance(cell, Image)


def _shown_size(cell: Any, content: bytes) -> tuple[int, int]:
    """Width and height of a file's image, turned as its EXIF tag says."""
    from PIL.Image import Image

    opened = _opened(cell, content)
    if unpacked := not has_end(opened.format, content):
        _unpack(cell, opened)
    # The class of PNGs unpacks one that has no such tag; its base does not.
    exif = opened.getexif() if unpacked else Image.getexif(opened)
    width, height = opened.size
    return (height, width) if exif.get(ORIENTATION) in TURNED else (width, height)


def _unpack(cell: Any, opened: Image) -> None:
    """Read the pixels of a picture.

    Raises:
        RequestError: its file is not whole.
    """
    try:
        opened.load()
        opened.getexif()
    except (OSError, SyntaxError, ValueError) as error:
        raise RequestError(f"{_named(cell)} is not a whole image ({one_line(error)}); replace it") from error


def _opened(cell: Any, content: bytes) -> Image:
    """A picture whose size is known and within the limits, and whose pixels are not read yet."""
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise RequestError(
            f"{_named(cell)} claims too many pixels, and at most {MOST_PIXELS:,} are unpacked; make it smaller"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise RequestError(
            f"{_named(cell)} is not an image that is read ({', '.join(FORMATS)}); convert or remove it"
        ) from error
    if opened.width * opened.height > MOST_PIXELS:
        raise RequestError(
            f"{_named(cell)} has {opened.width} x {opened.height} pixels, and at most {MOST_PIXELS:,} are unpacked; "
            "make it smaller"
        )
    if opened.mode.startswith(DEEP):
        raise RequestError(
            f"{_named(cell)} has grey values of more than 8 bits, of which processors see white alone; convert it to 8"
        )
    return opened


def _content(cell: Any, folder: Path | None) -> bytes:
    """The bytes of an image's file."""
    if isinstance(cell, Mapping):
        inside = cell.get("folder")
        folder = folder if inside is None else Path(inside)
        cell = cell.get("bytes") or cell.get("path") or cell.get("url")
    if isinstance(cell, bytes | bytearray | memoryview):
        return _limited(bytes(cell))
    if isinstance(cell, str) and (header := _DATA_URL.match(cell)):
        try:
            return _limited(base64.b64decode(cell[header.end() :], validate=True))
        except binascii.Error as error:
            raise RequestError(f"{_named(cell)} is not valid base64 ({error}); write it again") from error
    if folder == Path() and isinstance(cell, str):
        raise RequestError(f"{_named(cell)} comes from the hub without its bytes; download the data set with its files")
    if not isinstance(cell, str | Path) or not str(cell):
        raise RequestError(
            f"{_named(cell)} is no image: give a picture (PIL), the bytes of its file, a path or a data URL"
        )
    if _BASE64.fullmatch(str(cell)):
        raise RequestError(
            f"{_named(cell)} is not a path but base64; write it as a data URL, with 'data:image/png;base64,' before it"
        )
    if _REMOTE.match(str(cell)):
        raise RequestError(f"{_named(cell)} is not fetched from the network; save the image beside the data first")
    return _file(str(cell), folder)


def _file(name: str, folder: Path | None) -> bytes:
    path = Path(name) if folder is None else folder / name
    try:
        real = path.resolve()
        if folder is not None and not real.is_relative_to(folder.resolve()):
            raise RequestError(f"{_named(name)} lies outside of the data's folder {folder}; put the image inside")
        if not real.is_file():
            raise RequestError(f"{_named(name)}: there is no such file; paths begin at {folder or Path.cwd()}")
        if real.stat().st_size > MOST_BYTES:
            _limited(b"", real.stat().st_size)
        return real.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{_named(name)} cannot be read ({one_line(error)}); check the path") from error


def _limited(content: bytes, size: int | None = None) -> bytes:
    size = len(content) if size is None else size
    if size > MOST_BYTES:
        raise RequestError(
            f"an image of {size / 2**20:.0f} MiB is not read, at most {MOST_BYTES / 2**20:.0f} MiB are; make it smaller"
        )
    return content


def _named(cell: Any) -> str:
    """How a message names an image."""
    if isinstance(cell, Mapping):
        cell = cell.get("path") or cell.get("url") or cell
    if isinstance(cell, str | Path):
        return f"image {' '.join(str(cell).split())[:80]!r}"
    return f"image of type {type(cell).__name__}"
