"""How well a run tells better from worse completions, on pairs of any data set.

The reward of a completion is r = beta (log pi(y|x) - log pi_ref(y|x)), as in training; losses without a reference have
r = beta log pi(y|x). A pair is ranked right if r_chosen > r_rejected, and its margin is r_chosen - r_rejected.

Intervals hold the value for all pairs of this kind with 95 % confidence, if these were drawn from them:

- Wilson's interval for a share k / n (Wilson 1927, "Probable inference, the law of succession, and statistical
  inference", J. Am. Stat. Assoc. 22:209), which also holds for few pairs and for shares of 0 and 1;
- the percentile bootstrap for a mean (Efron 1979, "Bootstrap methods", Ann. Stat. 7:1): the middle 95 % of the means of
  10,000 samples of the pairs, drawn with replacement from a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch import Tensor

from wishbone.config.schema import DataConfig, RunConfig
from wishbone.data.batch import TokenizedPair, truncated_pair
from wishbone.data.pair_images import PairImages, placed_images
from wishbone.fused.parts import text_layers
from wishbone.model.load import load_model
from wishbone.phases import phase
from wishbone.policy.activations import checkpointed_layers
from wishbone.policy.layer_progress import counted_layers
from wishbone.preference.losses import are_reference_free
from wishbone.result.finished_run import FinishedRun, refuse_moved
from wishbone.result.trained_model import TrainedModel
from wishbone.run.prepare_data import prepare_data
from wishbone.trainer.image_rows import ImageRows
from wishbone.trainer.image_tokens import has_images

Z = 1.959963984540054
"""Half the width of 95 % of the normal distribution, in standard deviations."""
RESAMPLES, RESAMPLED_AT_ONCE = 10_000, 2**22
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value, and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """What a run does on pairs.

    Attributes:
        pairs: how many were measured.
        dropped: rows that are not usable pairs.
        ties: pairs with equal rewards, which count as told wrong.
        accuracy: share of pairs told right.
        margin: mean margin of the rewards.
        chosen, rejected: mean rewards.
    """

    pairs: int
    dropped: int
    ties: int
    accuracy: Interval
    margin: Interval
    chosen: Interval
    rejected: Interval


def wilson(right: int, pairs: int) -> Interval:
    """Return a share with Wilson's interval."""
    share, weight = right / pairs, Z * Z / pairs
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / pairs + weight / (4 * pairs)) / (1 + weight)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def bootstrap(values: Values) -> Interval:
    """Return a mean with the percentile bootstrap's interval; `values` is [pairs]."""
    generator = np.random.default_rng(0)
    at_once = max(1, RESAMPLED_AT_ONCE // len(values))
    means: list[Values] = []
    for start in range(0, RESAMPLES, at_once):
        drawn = generator.integers(len(values), size=(min(at_once, RESAMPLES - start), len(values)))
        means.append(values[drawn].mean(1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def evaluate(run: FinishedRun, data: str, *, split: str, limit: int | None) -> Evaluation:
    """Measure a run on the pairs of a data set, written in the form that the run was trained on.

    Args:
        run: the run.
        data: a file, a directory or a data set on the hub.
        split: of a directory or a data set on the hub.
        limit: the first so many pairs are measured; None: all.

    Raises:
        RequestError: the data cannot be read, or a model cannot be loaded.
    """
    model = TrainedModel(run)
    pairs, dropped = _pairs(_settings(run, data, split), model, limit)
    trained = pair_logps(model.trained, pairs)
    rewards = run.config.preference.beta * (trained - _reference_logps(run, model, pairs))
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    return Evaluation(
        pairs=len(pairs),
        dropped=dropped,
        ties=int((chosen == rejected).sum()),
        accuracy=wilson(int((chosen > rejected).sum()), len(pairs)),
        margin=bootstrap(chosen - rejected),
        chosen=bootstrap(chosen),
        rejected=bootstrap(rejected),
    )


def _settings(run: FinishedRun, data: str, split: str) -> RunConfig:
    """The settings of a run with other pairs; names of columns and rules for scores belong to the run's own."""
    kept = ("max_length", "truncation", "system_prompt", "template", "lost_text")
    settings = DataConfig(train="pairs", invalid_rows="drop").model_copy(
        update={"train": data, "split": split, **{name: getattr(run.settings.data, name) for name in kept}}
    )
    return run.config.model_copy(update={"data": settings})


class _PairsWithImages(Sequence[TokenizedPair]):
    """Pairs whose pixels are made when they are asked for: those of a whole data set would not fit into memory."""

    def __init__(self, rows: Dataset, processor: Any, max_length: int | None) -> None:
        self._rows, self._encoder, self._max_length = rows, ImageRows(processor), max_length

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        return self._encoder.pair(self._rows[number], max_length=self._max_length)


def _pairs(config: RunConfig, model: TrainedModel, limit: int | None) -> tuple[Sequence[TokenizedPair], int]:
    rows, _, dropped = prepare_data(config, model.tokenizer, (lambda: model.processor) if model.reads_images else None)
    chosen: Dataset = rows if limit is None else rows.select(range(min(limit, len(rows))))
    if has_images(chosen):
        return _PairsWithImages(chosen, model.processor, config.data.max_length), dropped
    pairs = [
        truncated_pair(
            list(row["prompt_ids"]),
            list(row["chosen_ids"]),
            list(row["rejected_ids"]),
            max_length=config.data.max_length,
            keep_end=config.data.truncation == "keep_end",
        )
        for row in chosen
    ]
    return pairs, dropped


def _reference_logps(run: FinishedRun, model: TrainedModel, pairs: Sequence[TokenizedPair]) -> Values | float:
    """log pi_ref of the completions, [pairs, 2]; 0 for losses without a reference."""
    losses = run.config.preference.loss
    if are_reference_free(losses if isinstance(losses, list | tuple) else [losses]):
        return 0.0
    named = run.config.model.reference
    if named is None:
        with model.before() as before:
            return pair_logps(before, pairs)
    refuse_moved(run.path, "model.reference", named)
    settings = run.config.model
    reference, _ = load_model(
        named,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        images=model.reads_images,
    )
    return pair_logps(reference, pairs)


@torch.inference_mode()
def pair_logps(model: Any, pairs: Sequence[TokenizedPair]) -> Values:
    """Return log pi(y|x) of the completions of each pair, summed over tokens: [pairs, 2], chosen first, float64."""
    found = torch.empty(len(pairs), 2, dtype=torch.float64)
    layers = checkpointed_layers(text_layers(model)[1])
    with phase("measuring", len(pairs), "pair") as measuring:
        for number, pair in enumerate(pairs):
            for side, (ids, start) in enumerate(pair.sequences()):
                with counted_layers(layers, len(ids), model.device):
                    found[number, side] = _completion_logp(model, ids, start, pair.images)
            measuring.more()
    return found.numpy()


def _completion_logp(model: Any, ids: list[int], start: int, images: PairImages | None) -> Tensor:
    """log p of the tokens from `start` on; without a prompt the first token is not scored."""
    tokens = torch.tensor([ids], device=model.device)
    first = max(start, 1)
    kept = len(ids) - first
    if kept < 1:
        return torch.zeros(())
    seen = placed_images([(images, [(0, 0)])], (1, len(ids)), model.device)
    logits = model(input_ids=tokens, **seen, use_cache=False).logits[0, first - 1 : -1].float()
    scores: Tensor = logits.log_softmax(-1).gather(1, tokens[0, first:, None])
    return scores.double().sum().cpu()
