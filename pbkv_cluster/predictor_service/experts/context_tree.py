"""A variable-order model of agents: counts of what follows each context, smoothed towards the next shorter context.

Contexts are the last 0 to 8 agents, and after these the step's number with the last 8. Each step ahead has counts of its own:
what follows two steps later is counted, not derived. P_d = (c + a·P_{d-1}) / (n + a) with a = 4, starting from the uniform
distribution: the Dirichlet prior form of back-off (MacKay and Peto, Natural Language Engineering 1(3), 1995).
"""

from array import array
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts.arrays import counts_of, grown, renumbered
from pbkv_cluster.predictor_service.experts.base import Expert, Floats, TrainingExample
from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.jit import jit
from pbkv_cluster.predictor_service.workflow.situation import Situation, suffix_hashes

DEPTH = 8
MAX_COUNTS = 8 << 20  # rows x steps ahead x columns, four bytes each

_PRIOR = np.float32(4.0)
_BATCH = 16  # examples learnt at a time

Numbers = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.int32]


class ContextTree(Expert[bytes]):
    """Counts by context. When there are too many contexts, the half that was seen longest ago leaves.

    A context's key is a hash of 32 bits. A hash table with linear probing gives the number of its row.
    """

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        self._used = 1  # rows in use; row 0 stands for no context, and has no counts
        self._keys: Numbers = np.zeros(64, dtype=np.uint32)  # of each row
        self._updated: npt.NDArray[np.int64] = np.zeros(64, dtype=np.int64)  # number of the batch that last changed each row
        self._counts: Floats = np.zeros((64, self.horizon, 8), dtype=np.float32)
        self._totals: Floats = np.zeros((64, self.horizon), dtype=np.float32)  # sums of counts: summing short rows is slow
        self._slots: Rows = np.zeros(128, dtype=np.int32)
        self._batches = 0

    @property
    def contexts(self) -> int:
        """Contexts that have counts."""
        return self._used - 1

    def features(self, situation: Situation) -> bytes:
        """Keys of the contexts, the shortest first, after a header: twice their number, plus 1 if the output is known."""
        hashes = suffix_hashes(situation.agents[-DEPTH:])
        text = hashes[-1] if hashes else 0
        keys = [0, *hashes]
        if len(hashes) < DEPTH:
            keys.append(crc32(b"\1", text))  # all steps from the start
        keys.append(crc32(b"\2%d" % situation.step, text))
        return array("I", (2 * len(keys) + situation.finished, *keys)).tobytes()

    def forecast(self, features: Sequence[bytes]) -> Floats:
        size = len(self.labels)
        self._counts = grown(self._counts, 1, self.horizon, size)
        found = np.full((len(features), self.horizon, size), 1.0 / size, dtype=np.float32)
        _forecast(_joined(features), self._slots, self._keys, self._counts, self._totals, found)
        return found

    def learn(self, examples: Sequence[TrainingExample[bytes]]) -> None:
        # The output adds nothing to the contexts, so examples with it would only repeat those without.
        before_output = [example for example in examples if not example.features[0] & 1]
        self._counts = grown(self._counts, 1, self.horizon, len(self.labels))
        for start in range(0, len(before_output), _BATCH):
            self._learn(before_output[start : start + _BATCH])

    def renumber(self, columns: Sequence[int]) -> None:
        self._counts = renumbered(self._counts, columns)
        self._totals = self._counts.sum(axis=2)

    def dump(self) -> dict[str, Any]:
        kept = 1 + np.argsort(self._updated[1 : self._used], kind="stable")
        counts = grown(self._counts, 1, self.horizon, len(self.labels))
        return {"keys": self._keys[kept].tolist(), "counts": counts[kept, :, : len(self.labels)]}

    def restore(self, state: dict[str, Any]) -> None:
        keys = state.get("keys")
        if not isinstance(keys, list) or not all(type(key) is int for key in keys) or len(set(keys)) != len(keys):
            raise ValueError("keys must be distinct numbers")
        if keys and not 0 <= min(keys) <= max(keys) < 1 << 32:
            raise ValueError("keys must be numbers of 32 bits")
        counts = counts_of(state, "counts", len(keys), self.horizon, len(self.labels))
        self._set(np.array(keys, dtype=np.uint32), np.arange(len(keys)), counts)

    def _set(self, keys: Numbers, updated: npt.NDArray[np.int64], counts: Floats) -> None:
        """Replaces all rows."""
        self._used = 1 + len(keys)
        self._keys, self._updated = np.concatenate(([np.uint32(0)], keys)), np.concatenate(([0], updated))
        self._counts = np.concatenate((np.zeros_like(counts, shape=(1, *counts.shape[1:])), counts))
        self._totals = self._counts.sum(axis=2)
        self._batches = max(self._batches, int(self._updated.max()))
        self._make_room(0)

    def _make_room(self, rows: int) -> None:
        """Makes room for more rows."""
        needed = self._used + rows
        self._counts = grown(self._counts, needed, *self._counts.shape[1:])
        size = len(self._counts)
        self._totals, self._keys, self._updated = (
            grown(self._totals, size, self.horizon),
            grown(self._keys, size),
            grown(self._updated, size),
        )
        if 2 * needed > len(self._slots) or rows == 0:
            self._slots = np.zeros(1 << (2 * needed).bit_length(), dtype=np.int32)
            _enter(self._keys, self._used, self._slots)

    def _learn(self, examples: Sequence[TrainingExample[bytes]]) -> None:
        records = _joined([example.features for example in examples])
        max_rows = MAX_COUNTS // int(self._counts[0].size)
        if len(examples) > 1 and 2 * len(records) > max_rows:  # one at a time if there is room for few rows only
            for example in examples:
                self._learn([example])
            return
        if self._used + len(records) > max_rows:
            kept = 1 + np.sort(np.argsort(self._updated[1 : self._used], kind="stable")[self._used // 2 :])
            self._set(self._keys[kept], self._updated[kept], self._counts[kept])
        self._make_room(len(records))
        self._batches += 1
        targets = np.array([example.targets for example in examples])
        self._used = _learn(
            records, targets, self._slots, self._keys, self._updated, self._counts, self._totals, self._used, self._batches
        )


@jit
def _slot_of(key: int, slots: Rows, keys: Numbers) -> int:
    """The slot of a key's row, or the free slot where it belongs."""
    at = key & (len(slots) - 1)
    while slots[at] != 0 and keys[slots[at]] != key:
        at = (at + 1) & (len(slots) - 1)
    return at


@jit
def _enter(keys: Numbers, used: int, slots: Rows) -> None:
    for row in range(1, used):
        slots[_slot_of(keys[row], slots, keys)] = row


@jit
def _forecast(records: Numbers, slots: Rows, keys: Numbers, counts: Floats, totals: Floats, found: Floats) -> None:
    examples, horizon, columns = found.shape
    at = 0
    for example in range(examples):
        end = at + 1 + (records[at] >> 1)
        for each in range(at + 1, end):
            row = slots[_slot_of(records[each], slots, keys)]
            if row == 0:
                continue
            for step in range(horizon):
                share = np.float32(1.0) / (totals[row, step] + _PRIOR)
                for column in range(columns):
                    found[example, step, column] = (counts[row, step, column] + _PRIOR * found[example, step, column]) * share
        at = end


@jit
def _learn(
    records: Numbers,
    targets: npt.NDArray[np.int64],
    slots: Rows,
    keys: Numbers,
    updated: npt.NDArray[np.int64],
    counts: Floats,
    totals: Floats,
    used: int,
    now: int,
) -> int:
    """Counts the targets of each example in the rows of its contexts. Returns the number of rows in use afterwards."""
    examples, horizon = targets.shape
    at = 0
    for example in range(examples):
        end = at + 1 + (records[at] >> 1)
        for each in range(at + 1, end):
            slot = _slot_of(records[each], slots, keys)
            if slots[slot] == 0:
                slots[slot] = used
                keys[used] = records[each]
                used += 1
            row = slots[slot]
            updated[row] = now
            for step in range(horizon):
                if targets[example, step] >= 0:
                    counts[row, step, targets[example, step]] += 1.0
                    totals[row, step] += 1.0
        at = end
    return used


def _joined(records: Sequence[bytes]) -> Numbers:
    return np.frombuffer(b"".join(records), dtype=np.uint32)
