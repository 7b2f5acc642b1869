"""Images from cells of a row: what is opened, what is refused."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip("PIL")

from PIL import Image

from wishbone.data import images
from wishbone.data.images import image_digest, image_size, read_image, row_images
from wishbone.errors import RequestError


def content(width: int = 6, height: int = 4, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), (200, 10, 10)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_what_a_row_holds() -> None:
    assert row_images({"images": None}) == row_images({}) == row_images({"images": []}) == []
    assert row_images({"image": "a"}) == row_images({"images": ["a"]}) == row_images({"images": "a"}) == ["a"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_kinds_of_files(kind: str) -> None:
    cell = {"bytes": content(kind=kind), "path": "anything"}
    assert image_size(cell) == read_image(cell).size == (6, 4)


def test_an_image_lies_as_its_tag_says() -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    turned = content(kind="JPEG", exif=exif)
    assert image_size(turned) == read_image(turned).size == (4, 6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_file_that_broke_off_is_found_before_it_is_unpacked_for_training(kind: str) -> None:
    noise = Image.frombytes("RGB", (64, 64), bytes(7 * i * i % 251 for i in range(3 * 64 * 64)))
    buffer = BytesIO()
    noise.save(buffer, kind)
    whole = buffer.getvalue()
    assert image_size(whole) == (64, 64)
    for part in (0.3, 0.9):
        with pytest.raises(RequestError, match=r"is not (a whole image|an image that is read)"):
            image_size(whole[: int(part * len(whole))])


def test_a_png_with_a_part_that_is_damaged_is_found() -> None:
    whole = content(64, 64)
    at = whole.index(b"IDAT") + 10
    with pytest.raises(RequestError, match="is not a whole image"):
        image_size(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])


def test_whole_files_are_not_unpacked_to_know_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {kind: content(kind=kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF")}
    monkeypatch.setattr(images, "_unpack", None)
    assert {image_size(cell) for cell in whole.values()} == {(6, 4)}


def test_a_png_is_turned_by_a_tag_before_or_behind_its_pixels() -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    before = content(exif=exif)
    at = before.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(before[at : at + 4])
    plain, last = before[:at] + before[end:], before.index(b"IEND") - 4
    behind = plain[: last - (end - at)] + before[at:end] + plain[last - (end - at) :]
    for cell, size in ((before, (4, 6)), (plain, (6, 4)), (behind, (4, 6))):
        assert image_size(cell) == read_image(cell).size == size


def test_paths_begin_in_the_folder_and_do_not_leave_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(content())
    (tmp_path / "b.png").write_bytes(content())
    (folder / "link.png").symlink_to(tmp_path / "b.png")
    assert read_image("a.png", folder).size == (6, 4)
    for path in ("../b.png", str(tmp_path / "b.png"), "link.png"):
        with pytest.raises(RequestError, match="lies outside of the data's folder"):
            read_image(path, folder)
    with pytest.raises(RequestError, match="there is no such file"):
        read_image("c.png", folder)


def test_bombs_and_large_files_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_PIXELS", 20)
    with pytest.raises(RequestError, match="has 6 x 4 pixels, and at most 20 are unpacked"):
        image_size(content())
    monkeypatch.setattr(images, "MOST_BYTES", 10)
    with pytest.raises(RequestError, match="is not read"):
        read_image(content())


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (b"no image", "is not an image that is read"),
        (content(kind="BMP")[:60], "is not"),
        ("http://example.com/a.png", "not fetched from the network"),
        ("data:image/png;base64,%%%", "not valid base64"),
        ("", "is no image"),
        (3, "is no image"),
        ({"bytes": None, "path": None}, "is no image"),
        ("a\0b", "cannot be read"),
        (base64.b64encode(content(64, 64, "BMP")).decode(), "is not a path but base64"),
    ],
)
def test_what_is_no_image_is_refused(cell: object, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_image(cell)


def test_the_hash_tells_images_apart() -> None:
    red, same = (Image.new("RGB", (4, 4), "red") for _ in range(2))
    assert image_digest(red) == image_digest(same)
    assert len({image_digest(one) for one in (red, red.convert("L"), Image.new("RGB", (2, 8), "red"))}) == 3


@pytest.mark.parametrize(("mode", "value", "kind"), [("I;16", 30_000, "PNG"), ("F", 0.5, "TIFF")])
def test_grey_values_that_become_white_or_black_are_refused(mode: str, value: float, kind: str) -> None:
    content = BytesIO()
    Image.new(mode, (2, 2), value).save(content, kind)
    for read in (read_image, image_size):
        with pytest.raises(RequestError, match=r"grey values of more than 8 bits.*convert it to 8"):
            read(content.getvalue())
