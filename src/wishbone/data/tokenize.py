"""Pairs as token ids: prompt, chosen, rejected, exactly as TRL's `DPOTrainer` computes them, in batches.

The ids of joined texts are not always the joined ids, so a pair is tokenized three times: the prompt alone (with the
header that opens the reply), the prompt with the chosen reply, the prompt with the rejected one. The completions begin
where the three differ:

    n        = length of the longest common prefix of ids(prompt), ids(prompt + chosen), ids(prompt + rejected)
    prompt   = ids(prompt)[:n]      chosen = ids(prompt + chosen)[n:]      rejected = ids(prompt + rejected)[n:]

Messages are first written as text by the chat template (`rendering`); beside the ids stands what the template lost.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import tokenizers
import transformers
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from wishbone.data.encoding import Ids, encode_rendered, encode_texts
from wishbone.data.formats import common_prompt
from wishbone.data.kept import kept_dataset
from wishbone.data.message_forms import without_nulls
from wishbone.data.rendering import RenderedPair, render_pairs
from wishbone.data.template_writer import TemplateWriter
from wishbone.errors import RequestError, counted, counted_of, one_line
from wishbone.phases import Phase, phase

logger = logging.getLogger(__name__)

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)
IdTriple = tuple[Ids, Ids, Ids]
Pair = tuple[Any, Any, Any]  # prompt, chosen, rejected: texts or lists of messages

ID_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
CUT_COLUMN, LOST_COLUMN, NOTES_COLUMN, EMPTY_COLUMN = "prompt_cut", "lost_text", "template_notes", "lost_completion"
_COLUMNS = (*ID_COLUMNS, CUT_COLUMN, LOST_COLUMN, NOTES_COLUMN, EMPTY_COLUMN)
_INPUTS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "source_row")
_SHOWN = 10


def tokenize_pairs(
    dataset: AnyDataset, tokenizer: PreTrainedTokenizerBase, *, num_proc: int | None = None
) -> AnyDataset:
    """Add `prompt_ids`, `chosen_ids`, `rejected_ids` to a data set of pairs, as TRL's `DPOTrainer` tokenizes them.

    Messages go through the chat template (with `tools` and `chat_template_kwargs` of the row); texts get the
    end-of-sequence token if they do not end with it. Without a prompt column, the prompt is the common beginning of
    both completions.

    Where TRL's ids would not hold what the pair says, they differ from TRL's (`rendering`): text blocks that the
    template cannot take are written as text, thoughts that it leaves out of the last answer are written, keys that
    Arrow added are left out, an empty list of tools is no tools, arguments of tool calls are objects, and beginning-
    and end-of-sequence tokens are not doubled. What is written in another way is logged, one line for each kind.

    A data set on disk is tokenized once: the result is kept in the cache, under the fingerprint of data, tokenizer and
    template. A stream is tokenized when it is read. A data set that already has the columns is returned unchanged.

    Args:
        dataset: columns chosen, rejected and usually prompt (texts or messages); optional tools, chat_template_kwargs.
        tokenizer: of the model to train.
        num_proc: processes for a `Dataset`; None: this process, with all cores if the tokenizer is a fast one.

    Returns:
        The data set with int32 lists `prompt_ids`, `chosen_ids`, `rejected_ids`; int32 `prompt_cut`: how many tokens
        the prompt alone has beyond the prompt that it shares with the completions (rarely above 0; gives a warning);
        text `lost_text`: what the chat template lost, usually null; bool `lost_completion`: whether nothing of a
        completion is left. `inspect_pairs` and `lost_rows` read them.

    Raises:
        RequestError: there are no rows, messages but no chat template, texts but no end-of-sequence token, or rows that
            are neither texts nor messages or that the template refuses.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise RequestError(f"{type(tokenizer).__name__} is not a tokenizer; pass a tokenizer, or that of a processor")
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if set(ID_COLUMNS) <= set(columns):
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.map(partial(_tokenize_stream, tokenizer), with_indices=True, batched=True, batch_size=256)
    if len(dataset) == 0:
        raise RequestError("the data set has no rows; there is nothing to tokenize")
    dataset = dataset.with_format(None).remove_columns([c for c in _COLUMNS if c in columns])
    inputs = dataset.select_columns([c for c in _INPUTS if c in columns])
    fingerprint = Hasher.hash((inputs._fingerprint, _identity(tokenizer)))

    def encode(**kept: Any) -> Dataset:
        with phase("tokenizing", len(inputs), "pair") as counting:
            return inputs.map(
                partial(_tokenize_table, tokenizer, counting if num_proc is None else None),
                with_indices=True,
                batched=True,
                remove_columns=inputs.column_names,
                num_proc=num_proc,
                new_fingerprint=fingerprint,
                desc="Tokenizing",
                **kept,
            )

    if inputs.cache_files and datasets.is_caching_enabled():
        ids = kept_dataset(f"ids-{fingerprint}", lambda directory: encode(cache_file_name=f"{directory}/ids.arrow"))
    else:
        ids = encode()
    _warn_of_cut_prompts(ids.with_format("numpy")[CUT_COLUMN][:])
    _tell_notes(ids.with_format("arrow")[:][NOTES_COLUMN].drop_null().to_pylist(), len(ids))
    ids = ids.remove_columns([NOTES_COLUMN])
    return concatenate_datasets([dataset, ids], axis=1)


def _identity(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """Everything that the ids depend on, with the date for templates that print it."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        # Truncation and padding come first in the JSON; the ids do not depend on them, and calls change them.
        state = tokenizer.backend_tokenizer.to_str().partition('"added_tokens"')[2]
    else:
        state = Hasher.hash(tokenizer)
    template = str(tokenizer.chat_template)
    return (
        type(tokenizer).__qualname__,
        state,
        template,
        date.today().isoformat() if "strftime_now" in template else "",
        sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        tokenizer.split_special_tokens,
        transformers.__version__,
        tokenizers.__version__,
        _code(),
    )


@cache
def _code() -> str:
    """A hash of the modules that make ids from messages."""
    here = Path(__file__).parent
    names = ("encoding", "lost_text", "message_forms", "rendering", "template_shapes", "template_writer", "tokenize")
    return str(Hasher.hash([(here / f"{name}.py").read_bytes() for name in names]))


def _tokenize_table(
    tokenizer: PreTrainedTokenizerBase, counting: Phase | None, batch: Mapping[str, Any], indices: list[int]
) -> pa.Table:
    ids = tokenize_batch(tokenizer, batch, indices)
    if counting is not None:
        counting.more(len(indices))
    types = {CUT_COLUMN: pa.int32(), LOST_COLUMN: pa.string(), NOTES_COLUMN: pa.string(), EMPTY_COLUMN: pa.bool_()}
    return pa.table(
        {name: _id_lists(ids[name]) for name in ID_COLUMNS}
        | {name: pa.array(ids[name], kind) for name, kind in types.items()}
    )


def _id_lists(rows: list[Ids]) -> Any:
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(rows), pa.int32()))


def _tokenize_stream(
    tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, Any], indices: list[int]
) -> dict[str, list[Any]]:
    ids = tokenize_batch(tokenizer, batch, indices)
    if indices[0] == 0:
        _warn_of_cut_prompts(np.array(ids[CUT_COLUMN]))
        _tell_notes([note for note in ids[NOTES_COLUMN] if note], len(indices))
    del ids[NOTES_COLUMN]
    return ids | {name: [row.tolist() for row in ids[name]] for name in ID_COLUMNS}


def _tell_notes(notes: Iterable[str], rows: int) -> None:
    """Log each kind of note once, with the number of its rows."""
    for note, count in Counter(chain.from_iterable(some.split("\n") for some in notes)).items():
        logger.warning("In %s %s.", counted_of(count, rows, "row"), note)


def _warn_of_cut_prompts(cut: np.ndarray[Any, Any]) -> None:
    if rows := int(np.count_nonzero(cut)):
        logger.warning(
            "In %s the tokenized prompt + completion does not begin with the tokenized prompt: the chat "
            "template writes the prompt differently without a completion, or a token spans both. The completion begins "
            "where they differ, which moves up to %s of the prompt's end into it. To avoid this, use a template "
            "that writes the prompt the same way in both cases, or end the prompt where a token ends.",
            counted_of(rows, len(cut), "row"),
            counted(int(cut.max()), "token"),
        )


def tokenize_batch(
    tokenizer: PreTrainedTokenizerBase, batch: Mapping[str, Any], indices: list[int]
) -> dict[str, list[Any]]:
    """The columns that `tokenize_pairs` adds, for some rows that need not be in a table; ids are int32 arrays [tokens].

    Args:
        tokenizer: of the model.
        batch: prompt, chosen, rejected and whatever else `tokenize_pairs` reads, each a list of values.
        indices: of the rows, for messages where there is no `source_row`.

    Raises:
        RequestError: as `tokenize_pairs`; a row that the template refuses is named "row N: ...".
    """
    numbers: list[int] = list(batch["source_row"]) if "source_row" in batch else [i + 1 for i in indices]
    pairs = _pairs(batch, numbers)
    nothing = [None] * len(pairs)
    tools, kwargs = batch.get("tools", nothing), batch.get("chat_template_kwargs", nothing)
    alike: defaultdict[str, list[int]] = defaultdict(list)  # rows of text, and rows of chat with the same settings
    for row, (prompt, _, _) in enumerate(pairs):
        alike["" if isinstance(prompt, str) else json.dumps((tools[row], kwargs[row]), default=repr)].append(row)
    encoded: dict[int, _Encoded] = {}
    for settings, rows in alike.items():
        members = [pairs[row] for row in rows]
        if settings:
            named = [numbers[row] for row in rows]
            found = _encode_chats(tokenizer, members, named, tools=tools[rows[0]], template_kwargs=kwargs[rows[0]])
        else:
            found = _encode_texts(tokenizer, members)
        encoded |= zip(rows, found, strict=True)
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for row in range(len(pairs)):
        (prompt, with_chosen, with_rejected), *rest = encoded[row]
        shared = min(_common_length(prompt, with_chosen), _common_length(prompt, with_rejected))
        divided = prompt[:shared], with_chosen[shared:], with_rejected[shared:], len(prompt) - shared
        for column, value in zip(columns.values(), (*divided, *rest), strict=True):
            column.append(value)
    return columns


ENDED = "the completion ends with the end-of-sequence token and white space, so no other one is added"
BEGUN = "the text begins with the beginning-of-sequence token, which the tokenizer adds too; it is written once"
ENDED_TWICE = "the end-of-sequence token would stand twice, as in TRL; it is written once"


class _Encoded(NamedTuple):
    """The ids of a pair, and what its rendering says: lost text, notes one below the other, an empty completion."""

    ids: IdTriple
    lost: str | None = None
    notes: str | None = None
    empty: bool = False


def _pairs(batch: Mapping[str, Any], numbers: Sequence[int]) -> list[Pair]:
    sides = zip(batch["chosen"], batch["rejected"], strict=True)
    if "prompt" in batch:
        pairs = [(prompt, *side) for prompt, side in zip(batch["prompt"], sides, strict=True)]
    else:
        pairs = [common_prompt(*side) if all(side) else (None, *side) for side in sides]
    if "source_row" not in batch:  # rows as they lie in an Arrow table, not those of load_pairs
        pairs = [pair if isinstance(pair[0], str) else tuple(map(without_nulls, pair)) for pair in pairs]
    _refuse_rows(
        f"row {number}: prompt, chosen, rejected must be three texts or three lists of messages, but are "
        f"{', '.join(type(field).__name__ for field in pair)}; load_pairs rewrites other layouts this way"
        for number, pair in zip(numbers, pairs, strict=True)
        if set(map(type, pair)) not in ({str}, {list})
    )
    return pairs


def _encode_texts(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[_Encoded]:
    end, begin = tokenizer.eos_token, tokenizer.bos_token_id
    if end is None:
        raise RequestError("the tokenizer has no end-of-sequence token for the completions; set tokenizer.eos_token")
    if (number := tokenizer.eos_token_id) is None or (number == tokenizer.unk_token_id and end != tokenizer.unk_token):
        raise RequestError(
            f"the end-of-sequence token {end!r} is not in the tokenizer's vocabulary, so completions would not end in "
            "it; set tokenizer.eos_token to a token that is, or add it"
        )
    ended = [(p, *(p + _with_one_end(side, end) for side in sides)) for p, *sides in pairs]
    ids = encode_texts(tokenizer, [text for triple in ended for text in triple], add_special_tokens=True)
    begun_twice = [begin is not None and row[:2].tolist() == [begin, begin] for row in ids]
    ids = [row[1:] if twice else row for row, twice in zip(ids, begun_twice, strict=True)]
    adds_end = _adds_end(tokenizer)
    if adds_end:
        ids = [row[:-1] for row in ids]
    encoded = []
    for row, (_, *sides) in enumerate(pairs):
        triple = slice(3 * row, 3 * row + 3)
        notes = {
            ENDED: any(_ends_before_space(side, end) for side in sides),
            BEGUN: any(begun_twice[triple]),
            ENDED_TWICE: adds_end or any(side.endswith(2 * end) for side in sides),
        }
        told = "\n".join(note for note, holds in notes.items() if holds)
        prompt, chosen, rejected = ids[triple]
        encoded.append(_Encoded((prompt, chosen, rejected), notes=told or None))
    return encoded


def _with_one_end(text: str, end: str) -> str:
    """A text with one end-of-sequence token at its end, or before the white space there that a template wrote."""
    if _ends_before_space(text, end):
        return text
    while text.endswith(end):
        text = text.removesuffix(end)
    return text + end


def _ends_before_space(text: str, end: str) -> bool:
    return not text.endswith(end) and text.rstrip().endswith(end)


def _adds_end(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself adds the end-of-sequence token to every text, prompts too."""
    plain, whole = (encode_texts(tokenizer, ["a"], add_special_tokens=add)[0].tolist() for add in (False, True))
    return bool(whole[-len(plain) - 1 :] == [*plain, tokenizer.eos_token_id])


def _encode_chats(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    numbers: Sequence[int],
    *,
    tools: str | list[Any] | None,
    template_kwargs: dict[str, Any] | None,
) -> list[_Encoded]:
    given = json.loads(tools) if isinstance(tools, str) else without_nulls(tools)
    writer = TemplateWriter(tokenizer, given, template_kwargs)
    found = render_pairs(writer, pairs)
    _refuse_rows(
        f"row {number}: the chat template refuses it: {one_line(refusal)}"
        for number, refusal in zip(numbers, found, strict=True)
        if isinstance(refusal, Exception)
    )
    rendered = [pair for pair in found if isinstance(pair, RenderedPair)]
    written = [side for pair in rendered for side in (pair.prompt, pair.chosen, pair.rejected)]
    encoded = iter(encode_rendered(tokenizer, [side.text for side in written if side.ids is None]))
    ids = [next(encoded) if side.ids is None else np.array(side.ids, dtype=np.int32) for side in written]
    return [
        _Encoded(triple, pair.lost, "\n".join(pair.notes) or None, pair.empty)
        for pair, triple in zip(rendered, zip(ids[::3], ids[1::3], ids[2::3], strict=True), strict=True)
    ]


def _refuse_rows(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise RequestError(
            found[:_SHOWN] + [f"... and {counted(len(found) - _SHOWN, 'more row')}"] * (len(found) > _SHOWN)
        )


def _common_length(ids: Ids, others: Ids) -> int:
    shorter = min(len(ids), len(others))
    different = np.flatnonzero(ids[:shorter] != others[:shorter])
    return int(different[0]) if len(different) else shorter
