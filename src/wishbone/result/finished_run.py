"""A run that is done: its configuration, the weights that it learned, and the form of text that it was trained on.

A run directory may come from a stranger. Its configuration is checked as any other, and code that comes with its model
runs only if the call at hand says so, whatever the configuration says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from wishbone.config.load import parse_config, read_text
from wishbone.config.schema import RunConfig
from wishbone.data.source import load_pairs
from wishbone.data.text_turns import are_texts
from wishbone.errors import RequestError
from wishbone.model.embedded import EMBEDDED_NAME
from wishbone.model.load import could_be_on_the_hub
from wishbone.paths import user_path
from wishbone.report.answers import ADAPTER, learned_weights
from wishbone.report.run_directory import CONFIG, RunRecord, read_run

RESULTS = ("adapter_config.json", "config.json")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        record: what its directory holds, unchecked.
        config: its settings, checked; `model.trust_remote_code` is what this call says.
        weights: the directory of what it learned, `adapter/` or `model/`.
        distrusted: whether the run wanted to run code that comes with its model and this call does not let it.
    """

    record: RunRecord
    config: RunConfig
    weights: Path
    distrusted: bool

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.record.path

    @property
    def settings(self) -> RunConfig:
        """Its settings as it carried them out: 0.1.0 had no `data.template`, and trained texts as they are."""
        data = self.config.data
        if data.template != "auto":
            return self.config
        return self.config.model_copy(update={"data": data.model_copy(update={"template": "none"})})

    @property
    def is_adapter(self) -> bool:
        """Whether the run trained an adapter, and not every weight."""
        return self.weights.name == ADAPTER


def finished_run(path: Path, *, trust_remote_code: bool = False) -> FinishedRun:
    """Read a finished run; `path` is its directory, or that of the adapter or model in it.

    Raises:
        RequestError: not a run directory, damaged settings, or the run has no result yet.
    """
    path = user_path(path)
    if not (path / CONFIG).exists() and any((path / name).is_file() for name in RESULTS):
        if not (path.absolute().parent / CONFIG).is_file():
            raise RequestError(
                f"{str(path)!r} holds weights and no run around them; name the run directory that `wishbone train` "
                "wrote, or load the weights in Python with FastLanguageModel.from_pretrained"
            )
        path = path.absolute().parent
    record = read_run(path)
    weights = learned_weights(record.path)
    config = parse_config(read_text(record.path / CONFIG))
    model = config.model.model_copy(update={"trust_remote_code": trust_remote_code})
    return FinishedRun(
        record,
        config.model_copy(update={"model": model}),
        weights,
        distrusted=config.model.trust_remote_code and not trust_remote_code,
    )


def refuse_moved(run: Path, key: Literal["model.name", "model.reference"], name: str) -> None:
    """Raise a RequestError with the remedy if a model that a run names by its path is no longer there.

    Args:
        run: the run directory.
        key: under which its settings name the model.
        name: what they say.
    """
    if name != EMBEDDED_NAME and not could_be_on_the_hub(name) and not user_path(name).exists():
        what = "the model that this run began with" if key == "model.name" else "the reference of this run"
        raise RequestError(
            f"{what} is no longer at {name!r}; move it back there, or write where it is now as {key} into "
            f"{str(run / CONFIG)!r}"
        )


def was_trained_on_texts(run: FinishedRun, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the run was trained on texts as they are, without a chat template.

    A run records it. Version 0.1.0 trained pairs of texts as they are and recorded nothing, so its pairs are read.
    Where they are gone, a model with a chat template is taken to have been trained in it.
    """
    data = run.config.data
    if tokenizer.chat_template is None:
        return True
    if data.template != "auto":
        return data.template == "none"
    try:
        pairs = load_pairs(data.train, split=data.split, invalid_rows="drop", columns=data.columns, turns=False)
    except RequestError:
        return False
    return are_texts(pairs)
