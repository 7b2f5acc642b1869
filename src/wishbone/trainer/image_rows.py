"""Rows with images as pairs of token ids and tensors, the same ids and pixels as TRL's.

TRL renders a row's messages with the processor's chat template, puts the images of the row where the prompt names them
(before the first question if it names none), and lets the processor write each image into the prompt as placeholder
tokens. Pixels are made when a batch is, because those of a whole data set would not fit into memory. TRL's collator
shows each prompt to the processor twice, here it is shown once.

How many tokens an image takes follows from its size. So lengths are known from the beginnings of the files: each size
is shown to the processor once, as a blank image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from trl.data_utils import apply_chat_template, extract_prompt, is_conversational, prepare_multimodal_messages

from wishbone.data.batch import TokenizedPair, truncated_pair
from wishbone.data.chat_template import REFUSALS, rendered
from wishbone.data.images import image_digest, image_size, read_image, row_images
from wishbone.data.pair_images import PairImages
from wishbone.errors import RequestError, one_line

SIDES = ("prompt", "chosen", "rejected")
MASKS = frozenset({"input_ids", "attention_mask"})

NEAR = 16
"""Tokens by which the text around an image may be cut otherwise than alone."""


class ImageRows:
    """Encodes rows with a model's processor.

    Args:
        processor: the model's, with a tokenizer and an image processor.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokens_of_size: dict[tuple[str, int, int], int] = {}
        self._mark = str(getattr(processor, "image_token", None) or "")
        self._mark_id = processor.tokenizer.convert_tokens_to_ids(self._mark) if self._mark else None
        self._made_by = processor.image_processor.to_json_string().encode()

    def pair(
        self, row: Mapping[str, Any], *, max_length: int | None = None, longest_prompt: int | None = None
    ) -> TokenizedPair:
        """Return a row as a pair, its completions cut so that no sequence is longer than `max_length`.

        Raises:
            RequestError: an image cannot be read, or images and placeholders do not go together; a completion has an
                image; the prompt is longer than `longest_prompt` or fills `max_length`, because tokens of images are
                never cut.
        """
        if completion_has_image(row):
            raise RequestError("a completion has an image, which cannot be trained here; leave the row out")
        images = [read_image(cell) for cell in row_images(row)]
        texts = self._texts(row, images)
        prompt, made = (
            self._encoded(texts["prompt"], images) if images else (self._text_ids(texts["prompt"], "prompt"), None)
        )
        room = room_of_prompt(max_length, longest_prompt)
        if images and room is not None and len(prompt) > room:
            raise RequestError(
                f"a prompt with images has {len(prompt):,} tokens, and there is room for {room:,}; tokens of images "
                "are never cut: raise max_length, let the processor make images smaller, or leave the row out"
            )
        chosen, rejected = (self._text_ids(texts[side], side) for side in SIDES[1:])
        if longest_prompt is not None:
            prompt = prompt[-longest_prompt:]
        return truncated_pair(prompt, chosen, rejected, max_length=max_length, images=made)

    def lengths(
        self, row: Mapping[str, Any], near: int | None = None, sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[int, int, int]:
        """Return the tokens of prompt, chosen and rejected, without unpacking an image.

        Args:
            row: as `pair` takes it.
            near: lengths of prompts about this one are exact; others may differ by a few tokens an image.
            sizes: width and height of its images, where they are known; otherwise their files are looked at.

        Raises:
            RequestError: as `pair`, for what can be known without pixels.
        """
        cells = row_images(row)
        sizes = [image_size(cell) for cell in cells] if sizes is None else sizes
        texts = self._texts(row, cells)
        chosen, rejected = (len(self._text_ids(texts[side], side)) for side in SIDES[1:])
        return self._prompt_length(texts["prompt"], sizes, near), chosen, rejected

    def asked(self, question: str | Sequence[Mapping[str, Any]]) -> tuple[list[int], PairImages | None]:
        """Return the token ids of a question up to where its answer begins, and its images; None if it has none.

        Args:
            question: messages, whose parts bring their pictures (PIL) in `image`; or, to continue a text, a text or its
                parts.

        Raises:
            RequestError: the processor or its chat template refuses the question; a text in it stands for an image.
        """
        if isinstance(question, str):
            return self._text_ids(question, "the question"), None
        loose = [part for part in question if "role" not in part]
        parts = loose or [part for message in question for part in _parts(message)]
        images = [part["image"] for part in parts if part["type"] == "image"]
        if loose:
            text = " ".join(self._mark if part["type"] == "image" else part["text"] for part in loose)
        else:
            write = partial(self._processor.apply_chat_template, add_generation_prompt=True, tokenize=False)
            turns = [{**message, "content": _parts(message)} for message in question]
            try:
                text = rendered(lambda: str(write(turns)), conversations=1, characters=len(str(turns)))
            except REFUSALS as refusal:
                raise RequestError(f"the chat template refuses the question: {one_line(refusal)}") from refusal
        return self._encoded(text, images) if images else (self._text_ids(text, "the question"), None)

    def _prompt_length(self, text: str, sizes: Sequence[tuple[int, int]], near: int | None) -> int:
        if not sizes:
            return len(self._text_ids(text, "prompt"))
        names = [getattr(self._processor, name, None) for name in ("boi_token", "image_token")]
        mark = next((name for name in names if name and text.count(name) == len(sizes)), None)
        if mark is not None:
            found = len(self._text_ids(text)) + sum(self._tokens(mark, *size) for size in sizes)
            if near is None or abs(found - near) > NEAR * len(sizes):
                return found
        return len(self._encoded(text, [_blank(*size) for size in sizes])[0])

    def _tokens(self, mark: str, width: int, height: int) -> int:
        """Tokens that an image of this size adds to a text which has its mark."""
        key = mark, width, height
        if key not in self._tokens_of_size:
            whole = len(self._encoded(mark, [_blank(width, height)])[0])
            self._tokens_of_size[key] = whole - len(self._text_ids(mark))
        return self._tokens_of_size[key]

    def _text_ids(self, text: str, without_images: str = "") -> list[int]:
        """Token ids of a text; one that is named must not hold the token that stands for an image."""
        ids: list[int] = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if without_images and self._mark_id is not None and self._mark_id in ids:
            raise RequestError(
                f"{without_images} has the text {self._mark!r} and no image there, and the model reads that as the "
                "place of an image; write it otherwise, or leave the row out"
            )
        return ids

    def _texts(self, row: Mapping[str, Any], images: Sequence[Any]) -> dict[str, str]:
        """Prompt, chosen and rejected as the model reads them, each image as the template writes it."""
        given = {name: row[name] for name in (*SIDES, "chat_template_kwargs") if row.get(name) is not None}
        whole = given if "prompt" in given else dict(extract_prompt(given))
        if not is_conversational(whole):
            return {side: whole[side] for side in SIDES}
        messages = {side: [_without_nothing(message) for message in whole[side]] for side in SIDES}
        try:
            prompt = _in_parts(messages["prompt"])
            messages["prompt"] = prepare_multimodal_messages(prompt, images=list(images))
            for side in SIDES[1:]:
                messages[side] = prepare_multimodal_messages(messages[side])
        except ValueError as error:
            raise RequestError(
                f"images and messages of a row do not go together ({one_line(error)}); name each image once, as a part "
                '{"type": "image"} of the prompt, or name none'
            ) from error
        tools = row.get("tools")
        rendered: dict[str, str] = apply_chat_template({**whole, **messages}, self._processor, tools=tools)
        return rendered

    def _encoded(self, text: str, images: Sequence[Any]) -> tuple[list[int], PairImages | None]:
        """Token ids of a text with its images, and what the model takes of the images."""
        try:
            made = self._processor(
                images=[list(images)] if images else None, text=[text], return_tensors="pt", add_special_tokens=False
            )
        except (ValueError, TypeError, IndexError, StopIteration) as error:
            raise RequestError(
                f"{type(self._processor).__name__} does not take {len(images)} images with the text {text[:80]!r} "
                f"({one_line(error)}); name each image once in the prompt"
            ) from error
        ids: list[int] = made["input_ids"][0].tolist()
        if not images:
            return ids, None
        inputs: dict[str, Tensor] = {}
        kinds: dict[str, list[int]] = {}
        unused = MASKS | {*(getattr(self._processor, "unused_input_names", None) or ())}
        for name, value in made.items():
            if name in unused:
                continue
            if not isinstance(value, Tensor):
                raise RequestError(
                    f"{type(self._processor).__name__} returns {name} as a {type(value).__name__} and not as a tensor, "
                    "so images of several pairs cannot share a row"
                )
            if name.endswith("token_type_ids"):
                kinds[name] = value[0].tolist()
            else:
                inputs[name] = value.contiguous()
        digest = hashlib.blake2b(self._made_by + b"".join(map(image_digest, images)), digest_size=16).digest()
        return ids, PairImages(inputs, kinds, digest)


def room_of_prompt(max_length: int | None, longest_prompt: int | None) -> int | None:
    """Return the most tokens of a prompt that leaves room for a completion; None without a limit."""
    limits = [limit for limit in (longest_prompt, None if max_length is None else max_length - 1) if limit is not None]
    return min(limits, default=None)


def completion_has_image(row: Mapping[str, Any]) -> bool:
    """Return whether a completion of a row holds an image."""
    for side in SIDES[1:]:
        messages = row.get(side)
        for message in messages if isinstance(messages, list) else ():
            parts = message.get("content") if isinstance(message, Mapping) else None
            if isinstance(parts, list) and any(isinstance(p, Mapping) and p.get("type") == "image" for p in parts):
                return True
    return False


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a message says, as parts."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _without_nothing(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without the fields that Arrow adds to parts of other kinds, which hold None."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return dict(message)
    return {**message, "content": [{key: value for key, value in part.items() if value is not None} for part in parts]}


def _in_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose texts are parts where one of them names the place of an image: TRL puts images before a text."""
    parts = [part for m in messages if isinstance(m.get("content"), list) for part in m["content"]]
    if not any(part.get("type") == "image" for part in parts):
        return messages
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def _blank(width: int, height: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (width, height))
