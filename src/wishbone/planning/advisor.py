"""From a situation to advice: the shape of the model, the GPU, the facts, the rules.

A model's shape comes from the config.json in its directory, else from the known model of this name. Where there is
neither, `parameters_billion` selects the known model that is the next larger, so that memory is not underestimated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wishbone.config.document import show, show_path
from wishbone.config.explain import nearest
from wishbone.config.rules import Applied, Outcome, Value, evaluate, rule_book
from wishbone.data.json_text import NotJsonError, parse_json
from wishbone.errors import RequestError
from wishbone.planning.facts import facts_of
from wishbone.planning.gpus import find_gpu
from wishbone.planning.known_models import known_shape, known_shapes
from wishbone.planning.model_shape import ModelShape, read_shape
from wishbone.planning.situation import NO_GPU, Situation


@dataclass(frozen=True)
class Advice:
    """What the rules say about a situation."""

    outcome: Outcome

    @property
    def facts(self) -> Mapping[str, Value]:
        """What the rules were evaluated with; memory is in GiB."""
        return self.outcome.facts

    @property
    def settings(self) -> Mapping[str, Value]:
        """Settings of a run by dotted name, and of scripts below `script.`."""
        return self.outcome.settings

    @property
    def applied(self) -> tuple[Applied, ...]:
        """Rules that held, in order."""
        return self.outcome.applied

    @property
    def warnings(self) -> tuple[Applied, ...]:
        """Rules that held and only warn."""
        return tuple(rule for rule in self.applied if rule.kind == "warning")


def advise(situation: Situation, shape: ModelShape | None = None) -> Advice:
    """Advise settings for a situation.

    Args:
        situation: the answers.
        shape: of the model; None: of its directory or name.

    Raises:
        RequestError: the GPU or the model's shape is not known; it names all problems.
    """
    problems: list[str] = []
    memory, gpu = 0.0, None
    if situation.gpu.lower() != NO_GPU:
        try:
            gpu = find_gpu(situation.gpu)
            memory = situation.gpu_memory_gib or gpu.memory_gib
        except RequestError as error:
            problems += [f"--gpu: {problem}" for problem in error.problems]
    try:
        shape = shape or shape_of(situation)
    except RequestError as error:
        problems += [f"--model: {problem}" for problem in error.problems]
    if problems or shape is None:
        raise RequestError(problems)
    facts = facts_of(situation, shape, gpu=gpu, gpu_memory=memory)
    return Advice(evaluate(rule_book(), facts))


def shape_of(situation: Situation) -> ModelShape:
    """Return the shape of a situation's model.

    Raises:
        RequestError: the shape is not known, or the model's config.json cannot be used.
    """
    config = Path(situation.model) / "config.json"
    if os.path.isfile(config):  # False also for a name that no file may have
        return _read_config(config)
    if found := known_shape(situation.model):
        return found
    if situation.parameters_billion is not None:
        sizes = sorted(known_shapes().values(), key=lambda shape: shape.parameters)
        return next((shape for shape in sizes if shape.parameters >= situation.parameters_billion * 1e9), sizes[-1])
    close = nearest(situation.model, known_shapes())
    hint = f"did you mean {close}? If not, say" if close else "say"
    raise RequestError(
        f"the shape of {show(situation.model)} is not known; {hint} how large it is with --parameters-billion"
    )


def _read_config(path: Path) -> ModelShape:
    try:
        config = parse_json(path.read_bytes())
    except OSError as error:
        raise RequestError(f"{show_path(path)} cannot be read ({error}); a model's config.json is needed") from error
    except NotJsonError as error:
        raise RequestError(f"{show_path(path)} {error}; a model's config.json is needed") from error
    if not isinstance(config, dict):
        raise RequestError(f"{show_path(path)} holds no mapping; a model's config.json is needed")
    return read_shape(config, str(path))
