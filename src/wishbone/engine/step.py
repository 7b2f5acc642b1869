"""One optimizer step: its loss and the gradients of that loss.

An optimizer step has groups of pairs, one for each batch that the user's settings make, and its loss is the mean over
groups of the mean over a group's pairs:

    L = 1/G sum_g 1/|g| sum_{i in g} loss_i( log pi(y|x) - log pi_ref(y|x) )

Groups decide how pairs are weighted. Rows decide what runs at once. They are independent: pairs of all groups are
packed into rows, each row is one forward and one backward pass, and the gradients add up to those of L for any rows.
How rows are computed (their length, what is recomputed) is an `Execution`, which changes only memory and time.

Some losses couple the pairs of a group (AOT sorts them). Their log-probabilities are computed first, the loss is
differentiated with respect to them alone, and a second pass sends those coefficients back. By the chain rule
dL/dtheta = sum_j dL/dlogp_j dlogp_j/dtheta, so the gradients are again exact for any rows.

A mixture of experts may have an auxiliary loss, a term of each group that couples all its tokens; `balance.py` says how
rows add it up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from wishbone.data.batch import PreferenceBatch, TokenizedPair
from wishbone.data.packing import alongside, pack_rows
from wishbone.engine.balance import StepBalance
from wishbone.engine.equal_passes import filler_rows, rows_to_run
from wishbone.engine.execution import Execution
from wishbone.ops.to_device import to_device
from wishbone.policy.lockstep import LockstepReference
from wishbone.policy.policy import Policy
from wishbone.policy.router_logits import RowRouting
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.preference.sequence_scores import SequenceScores, sequence_scores
from wishbone.reference.reference import ReferencePolicy

Groups = Sequence[Sequence[TokenizedPair]]
Backward = Callable[[Tensor], None]
Observer = Callable[[Sequence[TokenizedPair], SequenceScores, Tensor], None]
"""Takes the pairs of a group, the scores of their sequences, and the reference log-probabilities, [2 * pairs]."""


class PreferenceStep:
    """Computes losses and gradients of optimizer steps.

    Args:
        policy: the model that learns.
        reference: where reference log-probabilities come from.
        objective: what is minimized.
    """

    def __init__(self, policy: Policy, reference: ReferencePolicy, objective: Objective) -> None:
        self.policy = policy
        self.reference = reference
        self.objective = objective

    @property
    def couples(self) -> bool:
        """Whether a term of the loss couples the pairs of a group, so that a group cannot be divided."""
        return self.objective.coupled or self.objective.load_balancing is not None

    def backward(
        self,
        groups: Groups,
        metrics: PairMetrics,
        execution: Execution,
        backward: Backward = Tensor.backward,
        indices: Sequence[int] | None = None,
    ) -> Tensor:
        """Add the gradients of a step's loss to the parameters' and return the loss, a detached scalar.

        Args:
            groups: the pairs of one optimizer step.
            metrics: receives every pair once.
            execution: how rows are computed.
            backward: runs the backward pass of a scalar, for example through a gradient scaler.
            indices: of the pairs to compute, counted through all groups, with the weight that they have in the whole
                step. None: all. Must be None where the loss `couples` pairs.

        With a sharded model all processes must call this, also those without pairs; see `equal_passes.py`.
        """
        if indices is not None and self.couples:
            raise ValueError("a loss that couples the pairs of a group needs whole groups")
        if not groups:
            return self._backward_fillers(execution, backward)
        if self.objective.coupled:
            return self._backward_coupled(groups, metrics, execution, backward)
        pairs = [pair for group in groups for pair in group]
        weights = [1 / (len(groups) * len(group)) for group in groups for _ in group]
        mean_scored = [_mean_chosen_scored(group) for group in groups for _ in group]
        balance = self._balance(groups)
        if balance is not None:
            self._count_routing(balance, pairs, execution)
        total = torch.zeros((), dtype=self._dtype, device=self.policy.device)
        for row, batch in self._rows(pairs, execution, indices=indices):
            if not row:
                self._run_filler(batch, execution, backward)
                continue
            weight, scored = (self._per_pair([values[i] for i in row]) for values in (weights, mean_scored))
            routing = balance.routing(row, batch) if balance is not None else None
            reference = self._reference_of(batch, execution)
            with self.policy.running(execution):
                scores, ref_logps = self._scores_and_reference(batch, execution, reference, routing)
                loss = (self.objective(scores, ref_logps, scored) * weight).sum()
                if balance is not None and routing is not None:
                    loss = loss + balance.row_loss(row, routing)
                del batch, reference  # and pixels: a backward pass through a frozen tower needs none
                if loss.requires_grad:  # false where only the vision tower is trained and the row has no images
                    backward(loss)
            metrics.add(scores, ref_logps)
            total += loss.detach()
        if balance is not None:
            metrics.add_auxiliary(balance.losses())
        return total

    @torch.no_grad()
    def evaluate(
        self,
        group: Sequence[TokenizedPair],
        metrics: PairMetrics,
        execution: Execution,
        observe: Observer | None = None,
    ) -> Tensor:
        """Return the mean loss of one group, a scalar; `observe` gets the scores that it was computed from."""
        balance = self._balance([group])
        scores, ref_logps = self._score_all(group, metrics, execution, balance)
        if observe is not None:
            observe(group, scores, ref_logps)
        loss = self._group_loss(group, scores, ref_logps)
        return loss if balance is None else loss + balance.mean_loss().to(loss.dtype)

    @torch.no_grad()
    def score(self, pairs: Sequence[TokenizedPair], execution: Execution) -> tuple[SequenceScores, Tensor]:
        """Return scores and reference log-probabilities, [2 * pairs], in the order of the pairs."""
        return self._score_all(pairs, PairMetrics(beta=1.0), execution)

    def _backward_coupled(
        self, groups: Groups, metrics: PairMetrics, execution: Execution, backward: Backward
    ) -> Tensor:
        """`backward` in two passes: all log-probabilities and the loss's derivatives by them, then the parameters'."""
        pairs = [pair for group in groups for pair in group]
        balance = self._balance(groups)
        with torch.no_grad():
            scores, ref_logps = self._score_all(pairs, metrics, execution, balance)
        leaves = scores.logps.requires_grad_(), scores.plain_logps.clone().requires_grad_()
        scores = replace(scores, logps=leaves[0], plain_logps=leaves[1])
        loss, first = leaves[0].new_zeros(()), 0
        for group in groups:
            members = range(first, first + len(group))
            first += len(group)
            own_ref = ref_logps[2 * members.start : 2 * members.stop]
            loss = loss + self._group_loss(group, scores.of_pairs(members), own_ref) / len(groups)
        derivatives = torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)
        by_pair = [derivative.view(-1, 2) for derivative in derivatives]
        for row, batch in self._rows(pairs, execution):
            if not row:
                self._run_filler(batch, execution, backward, reference=False)
                continue
            routing = balance.routing(row, batch) if balance is not None else None
            with self.policy.running(execution):
                own, index = self._scores(batch, execution, routing), to_device(torch.tensor(row), self.policy.device)
                by_logps, by_plain = (derivative[index].flatten() for derivative in by_pair)
                part = (own.logps * by_logps + own.plain_logps * by_plain).sum()
                if balance is not None and routing is not None:
                    part = part + balance.row_loss(row, routing)
                del batch
                if part.requires_grad:
                    backward(part)
        return loss.detach() if balance is None else loss.detach() + balance.mean_loss().to(loss.dtype)

    def _balance(self, groups: Groups) -> StepBalance | None:
        """The accumulator of a step's auxiliary loss, or None where there is none."""
        term = self.objective.load_balancing
        return None if term is None else StepBalance(term, groups, self.policy.device)

    def _count_routing(self, balance: StepBalance, pairs: Sequence[TokenizedPair], execution: Execution) -> None:
        """Count the experts that routers choose in rows that hold a part of a group, before any backward pass."""
        for row, batch in self._rows(pairs, execution, balance.split):
            if not row:
                self._run_filler(batch, execution, reference=False)
                continue
            routing = balance.routing(row, batch)
            with torch.no_grad(), self.policy.running(execution):
                self.policy.token_scores(batch, execution, statistics=False, routing=routing)
            balance.add(row, routing)

    def _rows(
        self,
        pairs: Sequence[TokenizedPair],
        execution: Execution,
        wanted: Callable[[list[int]], bool] = lambda row: True,
        indices: Sequence[int] | None = None,
    ) -> Iterator[tuple[list[int], PreferenceBatch]]:
        """Yield the `wanted` rows of those that `pairs` are packed into: indices of pairs, and the pairs as tensors.

        With `indices`, only these pairs are packed. Rows without indices are fillers for a sharded model.
        """
        packed = range(len(pairs)) if indices is None else indices
        rows = pack_rows([pairs[i].row_tokens for i in packed], execution.token_budget)
        chosen = list(filter(wanted, ([packed[i] for i in row] for row in rows)))
        count = rows_to_run(self.policy, len(chosen))  # processes agree on it before the first pass
        if self.policy.sharded and self.objective.load_balancing is None:  # its rows were fixed by `_count_routing`
            chosen = alongside(chosen, [pair.row_tokens for pair in pairs], count)
        for row in chosen:
            yield row, self.policy.collate([pairs[i] for i in row], execution)
        for filler in filler_rows(self.policy, count - len(chosen), execution):
            yield [], filler

    def _run_filler(
        self,
        filler: PreferenceBatch,
        execution: Execution,
        backward: Backward | None = None,
        *,
        reference: bool = True,
    ) -> None:
        """Run the passes of a filler row, whose loss has weight 0: the policy's, with `reference` also the other's."""
        filler_reference = self._reference_of(filler, execution) if reference else torch.zeros(())
        with torch.set_grad_enabled(backward is not None), self.policy.running(execution):
            scores, _ = self._scores_and_reference(filler, execution, filler_reference, None)
            if backward is not None:
                backward(0.0 * scores.logps.sum())

    def _backward_fillers(self, execution: Execution, backward: Backward) -> Tensor:
        """Run filler rows in a process that has no group of a step, and return its loss, zero."""
        two_passes = self.objective.coupled
        if two_passes or self.objective.load_balancing is not None:
            for filler in filler_rows(self.policy, rows_to_run(self.policy, 0), execution):
                self._run_filler(filler, execution, reference=two_passes)
        for filler in filler_rows(self.policy, rows_to_run(self.policy, 0), execution):
            self._run_filler(filler, execution, backward, reference=not two_passes)
        return torch.zeros((), dtype=self._dtype, device=self.policy.device)

    def _reference_of(self, batch: PreferenceBatch, execution: Execution) -> LockstepReference | Tensor:
        """Reference log-probabilities of a row, or the reference itself where the policy's pass computes them."""
        lockstep = self.reference.lockstep_reference(batch)
        return self.reference.logps(batch, execution) if lockstep is None else lockstep

    def _scores_and_reference(
        self,
        batch: PreferenceBatch,
        execution: Execution,
        reference: LockstepReference | Tensor,
        routing: RowRouting | None,
    ) -> tuple[SequenceScores, Tensor]:
        """Scores of a row and its reference log-probabilities."""
        if isinstance(reference, Tensor):
            return self._scores(batch, execution, routing), reference
        of_policy, of_reference = self.policy.scores_in_lockstep(batch, reference, execution, routing=routing)
        ref_logps = sequence_scores(of_reference, batch, self.objective.ld_alpha).logps
        return sequence_scores(of_policy, batch, self.objective.ld_alpha), self.reference.record(batch, ref_logps)

    def _scores(
        self, batch: PreferenceBatch, execution: Execution, routing: RowRouting | None = None
    ) -> SequenceScores:
        tokens = self.policy.token_scores(batch, execution, routing=routing)
        return sequence_scores(tokens, batch, self.objective.ld_alpha)

    def _score_all(
        self,
        pairs: Sequence[TokenizedPair],
        metrics: PairMetrics,
        execution: Execution,
        balance: StepBalance | None = None,
    ) -> tuple[SequenceScores, Tensor]:
        """Scores and reference log-probabilities of all pairs, in the pairs' order.

        Where the policy is still the reference, one pass gives both; not in training, where dropout tells them apart.
        """
        one_model = not self.policy.model.training and self.reference.is_the_policy()
        order: list[int] = []
        parts: list[SequenceScores] = []
        references: list[Tensor] = []
        for row, batch in self._rows(pairs, execution):
            if not row:
                self._run_filler(batch, execution)
                continue
            routing = balance.routing(row, batch) if balance is not None else None
            if one_model:
                with self.policy.running(execution):
                    scores = self._scores(batch, execution, routing)
                ref_logps = self.reference.record(batch, scores.logps)
            else:
                reference = self._reference_of(batch, execution)
                with self.policy.running(execution):
                    scores, ref_logps = self._scores_and_reference(batch, execution, reference, routing)
            if balance is not None and routing is not None:
                balance.add(row, routing)
            metrics.add(scores, ref_logps)
            order += row
            parts.append(scores)
            references.append(ref_logps.view(-1, 2))
        back = sorted(range(len(order)), key=order.__getitem__)
        index = to_device(torch.tensor(back), self.policy.device)
        if balance is not None:
            metrics.add_auxiliary(balance.losses())
        return SequenceScores.join(parts).of_pairs(back), torch.cat(references)[index].flatten()

    def _group_loss(self, group: Sequence[TokenizedPair], scores: SequenceScores, ref_logps: Tensor) -> Tensor:
        return self.objective(scores, ref_logps, self._per_pair([_mean_chosen_scored(group)] * len(group))).mean()

    def _per_pair(self, values: list[float]) -> Tensor:
        return to_device(torch.tensor(values, dtype=self._dtype), self.policy.device)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.policy.causal_lm.dtype, torch.float32)


def _mean_chosen_scored(group: Sequence[TokenizedPair]) -> float:
    """Mean number of scored chosen tokens of a group."""
    return sum(len(pair.chosen) - max(pair.chosen_start, 1) for pair in group) / len(group)
