"""Index arithmetic of batches, checked against sequences written out by hand and by brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wishbone.data.batch import PlainBatch, SharedPrefixBatch, TokenizedPair, truncated_pair
from wishbone.data.pair_images import PairImages

TOKEN_IDS = st.lists(st.integers(1, 3), max_size=7)


def test_one_pair_written_out() -> None:
    pair = truncated_pair([1, 2], [7, 8, 9], [5])
    batch = SharedPrefixBatch.from_pairs([pair], padded_length=lambda tokens: tokens + 2)
    assert batch.input_ids.tolist() == [[1, 2, 7, 8, 9, 5, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1]]
    assert batch.predictor_index.tolist() == [1, 2, 3, 1]
    assert batch.targets.tolist() == [7, 8, 9, 5]
    assert batch.sequence_index.tolist() == [0, 0, 0, 1]
    assert batch.scored_index.tolist() == [0, 1, 2, 0]


def test_common_beginning_of_completions_is_computed_once() -> None:
    pair = truncated_pair([1, 2], [3, 4, 5], [3, 4, 6, 7])
    batch = SharedPrefixBatch.from_pairs([pair])
    assert pair.shared == 4 and pair.row_tokens == 7 == batch.tokens
    assert batch.targets.tolist() == [3, 4, 5, 3, 4, 6, 7]
    assert batch.predictor_index.tolist() == [1, 2, 3, 1, 2, 3, 5]


@pytest.mark.slow
@given(st.lists(st.tuples(TOKEN_IDS, TOKEN_IDS, TOKEN_IDS, st.integers(2, 9), st.booleans()), min_size=1, max_size=5))
def test_both_layouts_score_the_same_tokens_in_the_same_context(
    rows: list[tuple[list[int], list[int], list[int], int, bool]],
) -> None:
    pairs = [truncated_pair(p, c, r, max_length=n, keep_end=end) for p, c, r, n, end in rows]
    shared, plain = SharedPrefixBatch.from_pairs(pairs), PlainBatch.from_pairs(pairs)
    assert shared.targets.tolist() == plain.targets.tolist()
    assert shared.sequence_index.tolist() == plain.sequence_index.tolist()
    width = plain.input_ids.shape[1]
    flat_ids, flat_positions = plain.input_ids.flatten().tolist(), [i % width for i in range(plain.input_ids.numel())]
    for s, p in zip(shared.predictor_index.tolist(), plain.predictor_index.tolist(), strict=True):
        assert int(shared.input_ids[0, s]) == flat_ids[p]
        assert int(shared.position_ids[0, s]) == flat_positions[p]
        assert _context(shared, s) == flat_ids[p - p % width : p + 1]
    sequences = [ids for pair in pairs for ids, _ in pair.sequences()]
    starts = [start for pair in pairs for _, start in pair.sequences()]
    expected = [[ids[t] for t in range(max(start, 1), len(ids))] for ids, start in zip(sequences, starts, strict=True)]
    assert shared.targets.tolist() == [t for ids in expected for t in ids]
    assert shared.scored_lengths.tolist() == [len(ids) for ids in expected]
    assert shared.completion_lengths.tolist() == [len(i) - s for i, s in zip(sequences, starts, strict=True)]


def _context(batch: SharedPrefixBatch, token: int) -> list[int]:
    """Ids that `token` may see by the layout, itself last."""
    segment = next(s for s in batch.layout.segments() if s[0] <= token < s[1])
    index = [*range(segment[2], segment[3]), *range(segment[0], token + 1)]
    return batch.input_ids[0, index].tolist()


@pytest.mark.parametrize(
    ("max_length", "keep_end", "chosen", "starts"),
    [
        (None, False, [1, 2, 3, 4, 5, 6], (3, 3)),
        (5, False, [1, 2, 3, 4, 5], (3, 3)),
        (2, False, [1, 2], (2, 2)),
        (5, True, [2, 3, 4, 5, 6], (2, 3)),
        (2, True, [5, 6], (0, 1)),
    ],
)
def test_truncation(max_length: int | None, keep_end: bool, chosen: list[int], starts: tuple[int, int]) -> None:
    pair = truncated_pair([1, 2, 3], [4, 5, 6], [9], max_length=max_length, keep_end=keep_end)
    assert pair.chosen == chosen
    assert (pair.chosen_start, pair.rejected_start) == starts


def test_pair_that_is_all_common() -> None:
    pair = TokenizedPair([1, 2, 3], [1, 2, 3], 1, 1)
    batch = SharedPrefixBatch.from_pairs([pair])
    assert batch.tokens == 3 and batch.targets.tolist() == [2, 3, 2, 3]


@pytest.mark.parametrize("kind", [SharedPrefixBatch, PlainBatch])
def test_pixels_are_on_the_device_for_a_pass_alone(kind: type[SharedPrefixBatch] | type[PlainBatch]):
    pixels = torch.randn(2, 3, 4, 4)
    images = PairImages({"pixel_values": pixels}, {"token_type_ids": [1, 1, 0]}, b"")
    batch = kind.from_pairs([TokenizedPair([7, 7, 1, 2], [7, 7, 1, 3], 3, 3, images=images)], "meta")
    assert {tensor.device.type for tensor in batch.images.values()} == {"cpu"}
    inputs = batch.model_inputs
    assert {inputs[name].device.type for name in ("input_ids", *batch.images)} == {"meta"}
    assert torch.equal(batch.images["pixel_values"][:2], pixels)
