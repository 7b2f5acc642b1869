"""Which pairs share a row: packing by token budget.

A row has at most `budget` tokens. How the pairs of an optimizer step are packed into rows only changes memory and
speed; the loss is a mean over pairs and does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence


def pack_rows(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return rows of indices into `lengths` such that each row's lengths sum to at most `budget` tokens.

    First-fit decreasing gives the number of rows, at most 11/9 of the fewest plus a constant (Johnson 1973). Then the
    longest pair goes first into the emptiest of that many rows (Graham 1969), if that makes the longest row shorter:
    two half-full rows are faster and take less memory than a full one and a short rest. A pair longer than the budget
    gets a row of its own. Rows are in the order of their first pair, and pairs within a row keep their order, so a step
    visits its data nearly in the given order.
    """
    fewest = _first_fit(lengths, budget)
    packings = fewest, evened(lengths, len(fewest))
    rows = min(packings, key=lambda rows: max((sum(lengths[i] for i in row) for row in rows), default=0))
    return sorted(sorted(row) for row in rows)


def _first_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row, space in enumerate(free):
            if lengths[index] <= space:
                rows[row].append(index)
                free[row] -= lengths[index]
                break
        else:
            rows.append([index])
            free.append(budget - lengths[index])
    return rows


def evened(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Return `count` rows of indices whose sums of lengths are about the same.

    The longest goes first, into the emptiest row. The longest row is at most a third longer than in the best division
    (R. Graham, Bounds on multiprocessing timing anomalies, 1969). Rows are empty if lengths are fewer.
    """
    rows: list[list[int]] = [[] for _ in range(count)]
    filled = [0] * count
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = filled.index(min(filled))
        rows[row].append(index)
        filled[row] += lengths[index]
    return rows


def alongside(rows: list[list[int]], lengths: Sequence[int], most: int) -> list[list[int]]:
    """Return the rows that run beside those of other processes: as many as they have if pairs suffice, longest first.

    Args:
        rows: indices of pairs.
        lengths: tokens of each pair.
        most: how many rows other processes have, at most.
    """

    def tokens(row: Sequence[int]) -> int:
        return sum(lengths[index] for index in row)

    indices = sorted(index for row in rows for index in row)
    if indices and len(rows) < most:
        divided = evened([lengths[index] for index in indices], most)
        more = [sorted(indices[place] for place in row) for row in divided if row]
        if max(map(tokens, more)) <= max(map(tokens, rows)):
            rows = more
    return sorted(rows, key=tokens, reverse=True)
