"""What `wishbone check` is asked for: by its options, or by the file of a run, whose pairs it reads as the run does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wishbone.config.load import load_config
from wishbone.data.formats import PairRule
from wishbone.data.formats.recognize import Columns
from wishbone.data.row_reader import RowRules, Template
from wishbone.errors import RequestError

if TYPE_CHECKING:
    from wishbone.check.model_view import ModelView
    from wishbone.check.reading import PairReader

Source = tuple[str, str]
"""A name, and a split."""
RUN_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class CheckRequest:
    """What is to be checked, and how it is read.

    Attributes:
        data: the sources of the pairs to learn from, at least one.
        held_out: the source of the pairs to measure on; None without one.
        rules: how rows become pairs.
        template: `data.template`.
        model: whose tokens are counted; None: characters are counted.
        revision: of the model.
        trust_remote_code: whether Python code that comes with the model may run.
        max_length: `data.max_length` of a run.
    """

    data: Sequence[Source]
    held_out: Source | None = None
    rules: RowRules = field(default_factory=RowRules)
    template: Template = "auto"
    model: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    max_length: int | None = None

    def readers(self) -> list[PairReader]:
        """A reader of each source; with several, places name theirs.

        Raises:
            RequestError: a source cannot be found, or its columns are not those of a pair.
        """
        several = len(self.data) > 1
        rules = self._rules()
        return [_reader(source, rules, f"{Path(source[0]).name} " if several else "") for source in self.data]

    def held_out_reader(self) -> PairReader | None:
        """A reader of the held-out pairs; raises RequestError as `readers`."""
        return None if self.held_out is None else _reader(self.held_out, self._rules(), "")

    def _rules(self) -> RowRules:
        """How rows become pairs; images are refused where the model reads none."""
        if self.model is None:
            return replace(self.rules, images="read")
        from wishbone.model.checkpoint import reads_images
        from wishbone.model.load import read_model_config

        described = read_model_config(self.model, self.revision, self.trust_remote_code, weights=False)
        return replace(self.rules, images="read" if reads_images(described) else "refuse")

    def view(self) -> ModelView | None:
        """The tokenizer and the positions of the model; raises RequestError if they cannot be loaded."""
        if self.model is None:
            return None
        from wishbone.check.model_view import ModelView
        from wishbone.model.checkpoint import reads_images
        from wishbone.model.load import load_tokenizer, read_model_config
        from wishbone.model.positions import positions_of

        described = read_model_config(self.model, self.revision, self.trust_remote_code, weights=False)
        tokenizer = load_tokenizer(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)
        return ModelView(tokenizer, positions_of(described), self._prompt_tokens if reads_images(described) else None)

    @cached_property
    def _prompt_tokens(self) -> Callable[[Mapping[str, Any]], int]:
        from wishbone.model.load import load_processor
        from wishbone.trainer.image_rows import ImageRows

        assert self.model is not None
        rows = ImageRows(load_processor(self.model, self.revision, self.trust_remote_code))
        return lambda pair: rows.lengths(pair)[0]


def is_run_file(name: str) -> bool:
    """Whether a name is that of a run's file, and not of data."""
    return name.lower().endswith(RUN_FILES)


def of_a_run(path: str, overrides: Sequence[str]) -> CheckRequest:
    """The pairs of a run, read and seen as the run does.

    Args:
        path: its YAML file.
        overrides: `SECTION.KEY=VALUE` each.

    Raises:
        RequestError: the file or an override is wrong.
    """
    config = load_config(path, overrides)
    data, model = config.data, config.model
    named = data.eval is not None or data.eval_split is not None
    return CheckRequest(
        data=[(data.train, data.split)],
        held_out=(data.eval or data.train, data.eval_split or data.split) if named else None,
        rules=RowRules(
            system_prompt=data.system_prompt,
            columns=dict(data.columns or {}),
            rule=PairRule(data.pairs, data.least_margin),
        ),
        template=data.template,
        model=model.name,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        max_length=data.max_length,
    )


def named_columns(given: Sequence[str]) -> Columns:
    """`NAME=YOURS`, or `NAME=` for a column that is not read, as a mapping.

    Raises:
        RequestError: one of them has another form.
    """
    divided = [column.partition("=") for column in given]
    if wrong := [column for column, (ours, sign, _) in zip(given, divided, strict=True) if not (ours and sign)]:
        raise RequestError(
            f"--column {wrong[0]}: give NAME=YOURS, such as prompt=question_text, or NAME= for a column that is "
            "not read"
        )
    return {ours: theirs or None for ours, _, theirs in divided}


def _reader(source: Source, rules: RowRules, prefix: str) -> PairReader:
    from wishbone.check.reading import PairReader
    from wishbone.data.source import folder_of, open_rows

    name, split = source
    shown, rows = open_rows(name, split=split, columns=rules.columns)
    return PairReader(shown, rows, prefix=prefix, rules=replace(rules, folder=folder_of(name)))
