"""The model of a finished run in memory, as the run left it and as it was before.

With an adapter both are one model, whose adapter is switched off for the model as it was. If every weight was trained,
the model as it was is loaded when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wishbone.model.load import load_model, saved_with_processor
from wishbone.model.saved_adapter import load_adapter
from wishbone.result.finished_run import FinishedRun, refuse_moved
from wishbone.trainer.non_finite import refuse_non_finite


class TrainedModel:
    """The model of a run.

    Attributes:
        reads_images: whether the run was trained on images.
        processor: of the model where it was, else the tokenizer.
        tokenizer: of the model.
        trained: the model with what the run learned.
    """

    def __init__(self, run: FinishedRun) -> None:
        """Load it.

        Raises:
            RequestError: a model cannot be loaded, the adapter does not fit it, or weights are NaN or infinite.
        """
        self._run = run
        self._base: PreTrainedModel | None = None
        self.tokenizer: PreTrainedTokenizerBase
        self.trained: PreTrainedModel | PeftModel
        self.reads_images = saved_with_processor(run.weights)
        model, self.processor = self._load(None if run.is_adapter else str(run.weights))
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        if run.is_adapter:
            self.trained = load_adapter(model, run.weights, trainable=False).eval()
        else:
            refuse_non_finite(model, f"the model in {run.weights}")
            self.trained = model

    @contextmanager
    def before(self) -> Iterator[PreTrainedModel | PeftModel]:
        """The model as it was before the run, while the block lasts."""
        if isinstance(self.trained, PeftModel):
            with self.trained.disable_adapter():
                yield self.trained
            return
        if self._base is None:
            self._base, _ = self._load(None)
        yield self._base

    def _load(self, weights: str | None) -> tuple[PreTrainedModel, Any]:
        """The model of the run's configuration, or the one in a directory that the run wrote."""
        model = self._run.config.model
        own = weights is None
        if own:
            refuse_moved(self._run.path, "model.name", model.name)
        return load_model(
            model.name if weights is None else weights,
            dtype=model.dtype,
            revision=model.revision if own else None,
            trust_remote_code=model.trust_remote_code,
            load_in_4bit=own and model.quantization == "nf4",
            load_in_fp8=own and model.quantization == "fp8",
            load_in_rotated_int8=own and model.quantization == "int8",
            images=self.reads_images,
        )
