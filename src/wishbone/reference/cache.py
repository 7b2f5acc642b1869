"""A cache in front of a reference: each value is computed once and then looked up.

log pi_ref(y|x) does not change while the policy learns, so the first epoch computes it and later epochs, resumed runs
and runs with other hyperparameters read it. A pair's key is a hash over

    identity of the reference  |  LD-DPO's alpha  |  token ids of both sequences  |  where their completions begin
                               |  the images of their prompt

which is all that its two values depend on (up to rounding: other pairs in the same row can change the last bits). Only
the missing pairs of a batch are computed. New values stay on the device until `flush` writes them, because reading them
waits for the device; callers flush when waiting is cheap. A dictionary in front of the store saves a run from asking
for the same pair twice.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain

import torch
from torch import Tensor

from wishbone.cache import cache_root
from wishbone.data.batch import PreferenceBatch, TokenizedPair
from wishbone.engine.execution import UNLIMITED, Execution
from wishbone.errors import RequestError
from wishbone.ops.to_device import to_device
from wishbone.paths import user_path
from wishbone.policy.lockstep import LockstepReference
from wishbone.policy.long_sequences import positions_depend_on_length
from wishbone.policy.policy import Policy
from wishbone.reference.identity import Autocast, reference_identity
from wishbone.reference.reference import ReferencePolicy
from wishbone.reference.store import Logps, ReferenceStore
from wishbone.reference.store_owner import refuse_foreign
from wishbone.reference.weights import adapter_layers, base_tensors

STORE_VARIABLE = "WISHBONE_REFERENCE_STORE"
"""Environment variable that says what "auto" means: the path of a store, or "off". Unset: a file in the cache."""

SECONDS_BETWEEN_FLUSHES = 10.0
MOST_IN_MEMORY = 2**20
"""Most pairs in the dictionary, of some 200 bytes each; beyond that the oldest are left to the store."""

logger = logging.getLogger(__name__)


class CachedReference(ReferencePolicy):
    """A `ReferencePolicy` that looks values up before it computes them.

    Args:
        inner: computes what is missing.
        policy: the policy that `inner` runs; its form lays out the missing pairs.
        store: keeps values beyond this process.
        identity: returns the hash of everything that decides `inner`'s values; called at first use and by `begin`.
        ld_alpha: LD-DPO's weight in `inner`'s values, or None.

    Attributes:
        inner: computes what is missing, without a cache.
        reused: pairs that were looked up instead of computed, so far in this process.
        computed: pairs that were computed.
        store: where values are kept beyond this process.
    """

    def __init__(
        self,
        inner: ReferencePolicy,
        policy: Policy,
        store: ReferenceStore,
        identity: Callable[[], str],
        ld_alpha: float | None = None,
    ) -> None:
        self.store = store
        self.reused = self.computed = 0
        self.inner = inner
        self._policy, self._ask_identity, self._ld_alpha = policy, identity, ld_alpha
        self._identity: str | None = None
        self._memory: dict[bytes, Logps] = {}
        self._pending: list[tuple[list[bytes], Tensor]] = []
        self._pending_keys: set[bytes] = set()
        self._flushed = time.monotonic()

    def begin(self) -> None:
        """Compute the reference's identity again: a trainer may have been given other weights since."""
        self.flush()
        identity = self._ask_identity()
        if identity != self._identity:
            self._memory.clear()
        self._identity = identity

    def logps(self, batch: PreferenceBatch, execution: Execution = UNLIMITED) -> Tensor:
        """Return the reference log-probabilities of `batch`, [2 * pairs], of the dtype that they were computed in."""
        keys = [self._key(pair) for pair in batch.pairs]
        known = self._known(keys)
        missing = [i for i, key in enumerate(keys) if key not in known]
        self.reused += len(keys) - len(missing)
        self.computed += len(missing)
        device = batch.input_ids.device
        values = to_device(
            torch.tensor([v for key in keys for v in known.get(key, (0.0, 0.0))], dtype=self._dtype), device
        )
        if not missing:
            return values
        whole = len(missing) == len(keys)
        part = batch if whole else self._policy.collate([batch.pairs[i] for i in missing], execution)
        computed: Tensor = self.inner.logps(part, execution).to(device)
        self._pending.append(([keys[i] for i in missing], computed))
        self._pending_keys.update(keys[i] for i in missing)
        if whole:
            return computed
        sequences = [s for i in missing for s in (2 * i, 2 * i + 1)]
        return values.index_copy(0, to_device(torch.tensor(sequences), device), computed.to(values.dtype))

    def lockstep_reference(self, batch: PreferenceBatch) -> LockstepReference | None:
        """Return the reference of `inner` if a value is missing; None if all are known."""
        return None if self.knows(batch.pairs) else self.inner.lockstep_reference(batch)

    def is_the_policy(self) -> bool:
        """Return what `inner` says."""
        return self.inner.is_the_policy()

    def knows(self, pairs: Sequence[TokenizedPair]) -> bool:
        """Return whether the values of all these pairs are known."""
        keys = [self._key(pair) for pair in pairs]
        return len(self._known(keys)) == len(set(keys))

    def record(self, batch: PreferenceBatch, logps: Tensor) -> Tensor:
        """Keep values that were missing, and return the known ones instead of those computed again."""
        keys = [self._key(pair) for pair in batch.pairs]
        known = self._known(keys)
        missing = [key for key in keys if key not in known]
        self.reused += len(keys) - len(missing)
        self.computed += len(missing)
        if len(missing) == len(keys):
            self._pending.append((keys, logps))
            self._pending_keys.update(keys)
            return logps
        sequences = [s for i, key in enumerate(keys) if key not in known for s in (2 * i, 2 * i + 1)]
        index = to_device(torch.tensor(sequences, dtype=torch.long), logps.device)
        computed = logps.index_select(0, index)
        self._pending.append((missing, computed))
        self._pending_keys.update(missing)
        values = [v for key in keys for v in known.get(key, (0.0, 0.0))]
        return to_device(torch.tensor(values, dtype=logps.dtype), logps.device).index_copy(0, index, computed)

    def flush(self) -> None:
        """Read the values computed since the last flush, which waits for the device, and store them."""
        new: dict[bytes, Logps] = {}
        if self._pending:
            keys = list(chain.from_iterable(keys for keys, _ in self._pending))
            rows = torch.cat([values for _, values in self._pending]).cpu().double().view(-1, 2).tolist()
            for key, (chosen, rejected) in zip(keys, rows, strict=True):
                if math.isfinite(chosen) and math.isfinite(rejected):
                    new.setdefault(key, (chosen, rejected))
            self._pending.clear()
            self._pending_keys.clear()
            self._remember(new)
        self.store.put(new)
        self._flushed = time.monotonic()

    def flush_if_due(self) -> None:
        """Flush if the last time was some seconds ago."""
        if time.monotonic() - self._flushed > SECONDS_BETWEEN_FLUSHES:
            self.flush()

    @property
    def _dtype(self) -> torch.dtype:
        """Dtype of log-probabilities: float32, or float64 for float64 models."""
        return torch.promote_types(self._policy.causal_lm.dtype, torch.float32)

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, Logps]:
        """Return the values of those keys that this process or the store has."""
        if not self._pending_keys.isdisjoint(keys):
            self.flush()
        self._remember(self.store.get([key for key in dict.fromkeys(keys) if key not in self._memory]))
        return {key: self._memory[key] for key in keys if key in self._memory}

    def _remember(self, values: dict[bytes, Logps]) -> None:
        self._memory.update(values)
        while len(self._memory) > MOST_IN_MEMORY:
            del self._memory[next(iter(self._memory))]

    def _key(self, pair: TokenizedPair) -> bytes:
        """Return 128 bits that hash everything the pair's values depend on."""
        if self._identity is None:
            self._identity = self._ask_identity()
        alpha = math.nan if self._ld_alpha is None else float(self._ld_alpha)
        sizes = (len(pair.chosen), len(pair.rejected), pair.chosen_start, pair.rejected_start)
        digest = hashlib.blake2b(f"{self._identity} {alpha!r} {sizes}".encode(), digest_size=16)
        digest.update(array("q", pair.chosen + pair.rejected))
        if pair.images is not None:
            digest.update(pair.images.digest)
        return digest.digest()


def cached_reference(
    inner: ReferencePolicy,
    policy: Policy,
    *,
    asked: str,
    trained: torch.nn.Module,
    adapters: Callable[[], Sequence[str]] = tuple,
    moves: bool = False,
    ld_alpha: float | None = None,
    autocast: Autocast = nullcontext,
) -> ReferencePolicy:
    """Return `inner` behind a cache, or `inner` itself where the user wants no store or it would return wrong values.

    Args:
        inner: the reference.
        policy: the policy that it runs.
        asked: "auto", "off" or the path of the store.
        trained: the model that is trained.
        adapters: returns the frozen adapters that are on in the reference.
        moves: whether the reference follows the policy.
        ld_alpha: LD-DPO's weight of tails in the values, or None.
        autocast: context of the forward pass.

    Raises:
        RequestError: a path was given, and values of this reference cannot be stored, or the file is not a store.
    """
    place = (os.environ.get(STORE_VARIABLE) or "auto") if asked == "auto" else asked
    if place == "off":
        return inner
    reason = "it follows the policy" if moves else _obstacle(policy, trained, adapters())
    if reason is None:
        store = _store(place)
        return CachedReference(
            inner, policy, store, lambda: reference_identity(policy, adapters(), autocast=autocast), ld_alpha
        )
    if asked != "auto":
        raise RequestError(
            f"reference_store {asked!r} cannot hold values of this reference, because {reason}; "
            "set it to 'auto' or 'off'"
        )
    logger.info("Reference log-probabilities are not stored, because %s.", reason)
    return inner


def _store(place: str) -> ReferenceStore:
    if place == "auto":
        return ReferenceStore(cache_root() / "references.sqlite", private=True)
    path = user_path(place)
    refuse_foreign(path)
    return ReferenceStore(path)


def _obstacle(policy: Policy, trained: torch.nn.Module, adapters: Sequence[str]) -> str | None:
    """Return why a reference's values cannot be stored, or None."""
    model = policy.causal_lm
    tensors = [*base_tensors(model, adapters).values()]
    tensors += [tensor for layer in adapter_layers(model, adapters) for tensor in layer.tensors.values()]
    learning = {id(parameter) for parameter in trained.parameters() if parameter.requires_grad}
    if not learning.isdisjoint(map(id, tensors)):
        return "some of its weights are trained"
    if any(tensor.is_meta for tensor in tensors):
        return "some of its weights are not in memory, so they cannot be hashed"
    if policy.form != "shared_prefix" and positions_depend_on_length(model.config.get_text_config()):
        return "its position encoding lets the values of a pair depend on the longest sequence beside it"
    return None
