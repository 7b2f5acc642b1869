"""Whether the pairs of a run fit its model's positions and this machine's memory, known before weights are loaded.

A sequence longer than the positions that a model was trained on is read beyond what the model knows, or, where
positions are rows of a table, not at all. On a CPU nothing is tried beforehand, so the planner's estimate of the
longest row decides whether a run begins; on a GPU profiling measures it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from wishbone.config.schema import RunConfig
from wishbone.data.columns import token_lengths
from wishbone.data.tokenize import ID_COLUMNS
from wishbone.errors import RequestError, counted_of
from wishbone.model.positions import TABLES, positions_of, text_part
from wishbone.planning.hardware import read_memory
from wishbone.planning.lengths import PairLengths
from wishbone.planning.model_shape import read_shape
from wishbone.planning.room import Machine
from wishbone.planning.run_plan import Target, plan_run

GIB = 2**30

logger = logging.getLogger(__name__)


def this_cpu() -> Machine:
    """Return this machine as one that trains on its CPU."""
    memory = read_memory()
    return Machine("cpu", memory.total, memory.available)


def check_lengths(config: RunConfig, model: Mapping[str, Any], pairs: Dataset, machine: Machine | None) -> None:
    """Refuse or warn of pairs that are too long.

    Args:
        config: of the run.
        model: the model's config.json.
        pairs: tokenized pairs to learn from.
        machine: this machine where a CPU trains; None on a GPU.

    Raises:
        RequestError: pairs are longer than the model's positions and `data.max_length` is null, or longer than the
            table of positions; or the longest one takes more memory than is free.
    """
    prompt, chosen, rejected = token_lengths(pairs, ID_COLUMNS)
    lengths = PairLengths(prompt, chosen, rejected, "by the model's tokenizer")
    problems = [*_beyond_positions(config, model, lengths)]
    if not problems and machine is not None:
        problems = [*_beyond_memory(config, model, lengths, machine)]
    if problems:
        raise RequestError(problems)


def _beyond_positions(config: RunConfig, model: Mapping[str, Any], lengths: PairLengths) -> Iterator[str]:
    positions = positions_of(model) or 0
    limit = config.data.max_length
    sequences = lengths.prompt + np.maximum(lengths.chosen, lengths.rejected)
    kept = sequences if limit is None else np.minimum(sequences, limit)
    longer = int(np.count_nonzero(kept > positions))
    if not positions or (not longer and (limit is None or limit <= positions)):
        return
    what = f"{counted_of(longer, len(kept), 'pair', 'is', 'are')} longer than the {positions:,} positions of the model"
    what += f" (the longest has {int(kept.max()):,} tokens)"
    if longer and text_part(model).get("model_type") in TABLES:
        yield f"{what}, which has no others; set data.max_length={positions} to cut them"
    elif longer and limit is None:
        yield (
            f"{what}, and data.max_length is not set. Set data.max_length={positions} to cut them, or a larger number "
            "to train beyond these positions, of which the model knows nothing"
        )
    elif longer:
        logger.warning("%s: data.max_length is %s, and the model was not trained on the positions beyond.", what, limit)
    else:
        logger.warning(
            "data.max_length %s is more than the %s positions of the model; no pair is that long.", limit, positions
        )


def _beyond_memory(
    config: RunConfig, model: Mapping[str, Any], lengths: PairLengths, machine: Machine
) -> Iterator[str]:
    try:
        shape = read_shape(dict(model), config.model.name)
        plan = plan_run(config, Target(shape, lengths, machine, None))
    except RequestError:
        return  # a family or a form of weights that the planner does not know on a CPU
    needed, free = plan.rows.memory.allocated / GIB, machine.limit / GIB
    if needed <= free:
        return
    remedy = (
        f"set data.max_length={plan.longest_sequence} or less to cut long pairs, take a smaller model"
        if plan.longest_sequence > 1
        else "take a smaller model"
    )
    yield (
        f"the longest pair has {plan.longest:,} tokens in its row and takes about {needed:.1f} GiB of memory with the "
        f"model; {free:.1f} GiB are free. To train here, {remedy}, or free memory"
    )
