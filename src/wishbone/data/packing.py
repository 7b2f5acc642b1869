"""Which pairs share a row: packing by token budget.

A micro-batch is one row of at most `budget` tokens. How the pairs of an optimizer step are cut into rows is a question
of memory alone; the loss is a mean over pairs and does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence


def pack_rows(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return rows of indices into `lengths` such that each row's lengths sum to at most `budget` tokens.

    First-fit decreasing: within 11/9 of the fewest rows plus a constant (Johnson 1973). A pair longer than the budget
    gets a row of its own. Rows keep the order of their first pair and so do the pairs within a row, so that a step
    visits its data in the order it came in wherever that costs nothing.
    """
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
    return sorted(sorted(row) for row in rows)
