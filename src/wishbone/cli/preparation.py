"""What `wishbone init` finds out by itself: the data opened, the advice planned on this machine.

Data on this machine are read and their tokens counted, so lengths, the held-out share and the number of steps are those
of what is there. Where the file is for this machine, it is planned; a longest pair that memory does not hold lowers
`data.max_length`. What cannot be found out is one note, and the settings are then for usual data.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wishbone.config.load import parse_config
from wishbone.config.locate import DATA_SUFFIXES, refused_address
from wishbone.config.rules import Applied, Value
from wishbone.config.targets import write
from wishbone.errors import RequestError, counted, counted_of
from wishbone.paths import user_path
from wishbone.planning.advisor import Advice, advise, shape_of
from wishbone.planning.gpus import find_gpu
from wishbone.planning.lengths import PairLengths, tower_in
from wishbone.planning.model_files import model_directory
from wishbone.planning.situation import NO_GPU, Situation

COUNTED = ("pairs", "prompt_tokens", "completion_tokens", "longest_tokens")
"""Answers that the data give where nobody did."""
GIB = 2**30
STEP = 256
"""`data.max_length` is a multiple of it."""


@dataclass(frozen=True)
class Prepared:
    """A situation completed, with its advice.

    Attributes:
        situation: the answers, with what the data say.
        advice: settings and reasons.
        fits: whether the run fits this machine; None where the file is for another one, or it is not known.
        found: what was found out, a sentence each.
        notes: what a person should know.
    """

    situation: Situation
    advice: Advice
    fits: bool | None
    found: list[str]
    notes: list[str]


def prepare(situation: Situation, given: Collection[str], *, for_here: bool = False) -> Prepared:
    """Open the data of a situation and plan the run where it is for this machine.

    Args:
        situation: the answers.
        given: those of `COUNTED` that a person gave, which stay as they are.
        for_here: the run is to be on this machine, so a file of pairs must be here unless its lengths are given.

    Raises:
        RequestError: data on this machine cannot be read, or the model's shape or the GPU is not known.
    """
    found: list[str] = []
    notes: list[str] = []
    lengths, left_out = None, 0
    if refusal := refused_address(situation.data):
        raise RequestError(f"--data: {refusal}")
    if reason := _not_opened(situation.data):
        if for_here and "pairs" not in given and _is_path(situation.data):
            from wishbone.data.files import similar_names

            raise RequestError(
                f"--data: {reason}{similar_names(Path(situation.data))}; correct the path, or for pairs that are "
                "to come say how many there will be with --pairs"
            )
        if not set(given) >= set(COUNTED):
            notes.append(
                f"{reason}, so lengths and steps are for usual data; --pairs and --longest-tokens say more, and "
                "the run needs the data"
            )
    else:
        situation, lengths, left_out = _opened(situation, given, found, notes)
    advice = _advised(situation, left_out)
    if lengths is None or situation.target != "wishbone":
        return Prepared(situation, advice, None, found, notes)
    return _planned(situation, advice, lengths, left_out, found, notes)


def _not_opened(name: str) -> str | None:
    """Why data are not opened, or None."""
    if user_path(name).exists():
        return None
    if _is_path(name):
        return f"{name} is not here"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return f"{name} is on the hub, which HF_HUB_OFFLINE forbids to ask"
    return None


def _is_path(name: str) -> bool:
    """Whether a name can be nothing else: ids on the hub may have a dot, too, behind their owner's name."""
    return name.startswith((".", "~", "/")) or name.lower().endswith(DATA_SUFFIXES) or ("." in name and "/" not in name)


def _opened(
    situation: Situation, given: Collection[str], found: list[str], notes: list[str]
) -> tuple[Situation, PairLengths | None, int]:
    from wishbone.planning.opened_data import open_data

    local = user_path(situation.data).exists()
    try:
        opened = open_data(situation.data, model_directory(situation.model))
    except RequestError as error:
        if local:
            raise RequestError([f"--data: {problem}" for problem in error.problems]) from error
        notes.append(f"{situation.data} could not be opened ({error}); lengths and steps are for usual data")
        return situation, None, 0
    counts = {
        "pairs": len(opened.lengths),
        "prompt_tokens": opened.prompt,
        "completion_tokens": opened.completion,
        "longest_tokens": opened.longest,
    }
    found.append(
        f"{counted(counts['pairs'], 'pair')} in {situation.data}; a median prompt has "
        f"{counted(opened.prompt, 'token')}, a median completion {opened.completion:,}, the longest of both together "
        f"{opened.longest:,} ({opened.lengths.source})"
    )
    notes += opened.problems if not opened.left_out else []
    positions = shape_of(situation).positions
    if positions and counts["longest_tokens"] > positions:
        longer = int((_sequences(opened.lengths) > positions).sum())
        prompt = min(opened.prompt, positions - 1)
        completion = min(opened.completion, positions - prompt)
        counts |= {"prompt_tokens": prompt, "completion_tokens": completion, "longest_tokens": positions}
        notes.append(
            f"{counted_of(longer, counts['pairs'], 'pair', 'is', 'are')} longer than the {positions:,} positions of "
            "the model and will be cut"
        )
    changes = {name: value for name, value in counts.items() if name not in given}
    values = {**situation.model_dump(), **changes}
    values["longest_tokens"] = max(values["longest_tokens"], values["prompt_tokens"] + values["completion_tokens"])
    if opened.left_out:
        notes.append(
            f"{counted(opened.left_out, 'row')} cannot be used and will be left out (data.invalid_rows: drop); "
            f"`wishbone check {situation.data}` lists them" + "".join(f": {problem}" for problem in opened.problems[:1])
        )
    return Situation.model_validate(values), opened.lengths, opened.left_out


def _advised(situation: Situation, left_out: int) -> Advice:
    advice = advise(situation)
    if not left_out or situation.target != "wishbone":
        return advice
    drop: dict[str, Value] = {"data.invalid_rows": "drop", "data.lost_text": "drop"}
    reason = f"{counted(left_out, 'row')} of the data cannot be used, and the run would be refused."
    rule = Applied("left-out", drop, reason, "wishbone-design", "setting")
    outcome = advice.outcome
    return Advice(replace(outcome, settings={**outcome.settings, **drop}, applied=(*outcome.applied, rule)))


def _planned(
    situation: Situation,
    advice: Advice,
    lengths: PairLengths,
    left_out: int,
    found: list[str],
    notes: list[str],
) -> Prepared:
    """Plan the run on this machine, with shorter sequences where the longest do not fit."""
    from wishbone.cli.plan import device_here
    from wishbone.planning.run_plan import Target, plan_run

    gpu, machine, here = device_here()
    named = None if situation.gpu.lower() == NO_GPU else find_gpu(situation.gpu)
    if not here or (named is None) != (gpu is None) or (named and gpu and named.name != gpu.name):
        return Prepared(situation, advice, None, found, notes)
    plan: Any = None
    directory = model_directory(situation.model)
    tower = None if directory is None else tower_in(directory)
    for _ in range(2):
        config = parse_config(write("wishbone", "yaml", advice.outcome))
        target = Target(shape_of(situation), lengths, machine, gpu, tower=tower)
        plan = plan_run(config, target, processes=situation.gpus)
        shorter = plan.longest_sequence // STEP * STEP
        limit = config.data.max_length
        if plan.fits or limit is None or not situation.prompt_tokens + situation.completion_tokens <= shorter < limit:
            break
        longer = int((_sequences(lengths) > shorter).sum())
        notes.append(
            f"sequences are cut to {shorter:,} tokens, because longer ones do not fit into this machine's memory; "
            f"that shortens {counted_of(longer, len(lengths), 'pair')}"
        )
        situation = situation.model_copy(update={"longest_tokens": shorter})
        advice = _advised(situation, left_out)
    steps, need, limit_gib = plan.schedule, plan.rows.memory.total / GIB, machine.limit / GIB
    fits = "fits" if plan.fits else "does not fit"
    found.append(
        f"{counted(steps.steps, 'step')} of {counted(steps.pairs_a_step, 'pair')}; "
        f"{fits}: it needs about {need:.1f} GiB of the {limit_gib:.1f} that may be used"
    )
    if not plan.fits:
        notes.append("the run does not fit this machine; `wishbone plan` on the file lists what would")
    return Prepared(situation, advice, plan.fits, found, notes)


def _sequences(lengths: PairLengths) -> Any:
    import numpy as np

    return lengths.prompt + np.maximum(lengths.chosen, lengths.rejected)
