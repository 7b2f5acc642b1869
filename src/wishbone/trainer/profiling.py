"""TRL's trainer that chooses before its first step how rows are computed, and writes that choice to its checkpoints.

Profiling measures how long rows may be and which activations are kept, and records CUDA graphs where they pay. A
run that continues on the same machine takes what its checkpoint says (`execution_in_checkpoint.py`).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from wishbone.data.batch import TokenizedPair
from wishbone.engine.equal_passes import with_least_room
from wishbone.engine.execution import Execution
from wishbone.engine.graph_selection import passes_to_come, with_cuda_graphs
from wishbone.engine.profiling import profile_rows
from wishbone.engine.row_lengths import longest_of_stream, pair_tokens
from wishbone.engine.step import PreferenceStep
from wishbone.phases import phase
from wishbone.trainer.checkpointing import CheckpointedTrainer
from wishbone.trainer.execution_in_checkpoint import Asked, Recorded, read_execution, write_execution
from wishbone.trainer.image_dataset import ImagePairs

logger = logging.getLogger(__name__)


class ProfiledTrainer(CheckpointedTrainer):
    """TRL's trainer with an execution.

    Attributes:
        preference_step: what computes loss and gradients, or None where the run needs TRL's own path.
        execution: how the step computes rows now: as the settings ask, from the first step on as profiling found,
            and after memory ran out as it fitted.
    """

    preference_step: PreferenceStep | None
    execution: Execution
    _pending: list[list[TokenizedPair]]
    _image_pairs: ImagePairs | None
    _pairs_with_images: list[TokenizedPair]

    def _profile_rows(self, step: PreferenceStep) -> None:
        """Measure how much memory rows take, and record CUDA graphs where that pays; before the first step.

        A run that continues on the same machine computes rows as before. Rows of a sharded model are not tried out,
        because one that does not fit in one process would leave the others waiting.
        """
        if step.policy.sharded:
            self.execution = with_least_room(self.execution, step.policy.device)
            return
        usual = self.args.train_batch_size * self.args.gradient_accumulation_steps
        pairs = max(usual, sum(map(len, self._pending)))
        known, images = isinstance(self.train_dataset, Dataset), self._image_pairs
        if known and images is not None:
            tokens = images.tokens(self.args.max_length)
        elif known:
            tokens = pair_tokens(self.train_dataset, self.args.max_length)
        else:
            tokens = np.full(pairs, longest_of_stream(self.args.max_length))
        graphs, recorded = self.args.cuda_graphs, self._recorded_execution()
        if recorded is not None:
            on_cpu = step.policy.device.type == "cpu"  # there memory is shared, and recomputing changes no bit
            room = self.execution.room if on_cpu else recorded.execution.room
            self.execution, graphs = replace(recorded.execution, room=room), "on" if recorded.graphs else "off"
        else:
            fixed = self.args.token_budget != "auto"
            with phase("profiling"):
                self.execution = profile_rows(
                    step, self.execution, tokens, pairs, budget_fixed=fixed, images=self._pairs_with_images
                )
        if images is not None and graphs != "off":
            if graphs == "on":
                logger.warning("No CUDA graph is recorded, because rows have images.")
            graphs = "off"
        if graphs != "off" and known and self.accelerator.num_processes == 1:
            left = self.state.max_steps - self.state.global_step
            self.execution = with_cuda_graphs(
                step,
                self.execution,
                tokens,
                pairs,
                wanted=graphs,
                steps=left,
                passes=passes_to_come(
                    step, [pair for group in self._pending for pair in group], seen_again=left * pairs > len(tokens)
                ),
            )

    def _asked(self, step: PreferenceStep) -> Asked:
        return Asked.of(self.args, step.policy.device, self.accelerator.num_processes)

    def _recorded_execution(self) -> Recorded | None:
        """How rows were computed in the checkpoint that training continues from."""
        if self.continued is None or self.preference_step is None:
            return None
        return read_execution(self.continued, self.args.process_index, self._asked(self.preference_step))

    def _write_extras(self, written: Path, folder: Path) -> None:
        """Add how rows are computed, in this process, to what a checkpoint holds."""
        super()._write_extras(written, folder)
        if self.preference_step is not None:
            asked = self._asked(self.preference_step)
            write_execution(written, self.args.process_index, self.execution, asked)
