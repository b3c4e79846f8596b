"""A variable-order model of agents: counts of what came behind each context, smoothed towards the shorter ones.

Contexts are the last 0 to 8 agents, and last of all the step's number with the last 8. Each horizon has counts of its own: who
comes in two steps is counted, not derived. P_d = (c + a·P_{d-1}) / (n + a) with a = 4, from the uniform distribution up: the
Dirichlet prior form of back-off (MacKay and Peto, Natural Language Engineering 1(3), 1995).
"""

from array import array
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.compiled import compiled
from pbkv_cluster.predictor_service.experts.arrays import counts_of, grown, renumbered
from pbkv_cluster.predictor_service.experts.base import Expert, Floats, Lesson
from pbkv_cluster.predictor_service.workflow.situation import Situation, hashes_of_latest
from pbkv_cluster.predictor_service.workload.labels import Labels

DEPTH = 8

_PRIOR = np.float32(4.0)
_MOST_COUNTS = 8 << 20  # four bytes each: rows times horizons times columns
_TOGETHER = 16  # lessons that are learnt in one go

Numbers = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.int32]


class ContextTree(Expert[bytes]):
    """Counts by context. When there are too many contexts, the longer half unseen leaves.

    A context's key, a hash of 32 bits, is looked up in slots with linear probing; they hold the numbers of rows.
    """

    def __init__(self, config: PredictorConfig, labels: Labels) -> None:
        super().__init__(config, labels)
        self._used = 1  # rows; row 0 is of none, and has no counts
        self._keys: Numbers = np.zeros(64, dtype=np.uint32)  # of each row
        self._seen: npt.NDArray[np.int64] = np.zeros(64, dtype=np.int64)  # when each row was learnt last
        self._counts: Floats = np.zeros((64, self.horizon, 8), dtype=np.float32)
        self._totals: Floats = np.zeros((64, self.horizon), dtype=np.float32)  # adding up short rows is slow
        self._slots: Rows = np.zeros(128, dtype=np.int32)
        self._lessons = 0

    def features(self, situation: Situation) -> bytes:
        """Keys of the contexts, the shortest first. Before them their number, twice, plus one if the output is known."""
        hashes = hashes_of_latest(situation.agents[-DEPTH:])
        text = hashes[-1] if hashes else 0
        keys = [0, *hashes]
        if len(hashes) < DEPTH:
            keys.append(crc32(b"\1", text))  # the whole way from the start
        keys.append(crc32(b"\2%d" % situation.step, text))
        return array("I", (2 * len(keys) + situation.finished, *keys)).tobytes()

    def forecast(self, features: Sequence[bytes]) -> Floats:
        size = len(self.labels)
        self._counts = grown(self._counts, 1, self.horizon, size)
        found = np.full((len(features), self.horizon, size), 1.0 / size, dtype=np.float32)
        _forecast(_joined(features), self._slots, self._keys, self._counts, self._totals, found)
        return found

    def learn(self, lessons: Sequence[Lesson[bytes]]) -> None:
        # With its output a situation knows no more than it did before.
        news = [lesson for lesson in lessons if not lesson.features[0] & 1]
        self._counts = grown(self._counts, 1, self.horizon, len(self.labels))
        for start in range(0, len(news), _TOGETHER):
            self._learn(news[start : start + _TOGETHER])

    def keep(self, columns: Sequence[int]) -> None:
        self._counts = renumbered(self._counts, columns)
        self._totals = self._counts.sum(axis=2)

    def dump(self) -> dict[str, Any]:
        kept = 1 + np.argsort(self._seen[1 : self._used], kind="stable")
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

    def _set(self, keys: Numbers, seen: npt.NDArray[np.int64], counts: Floats) -> None:
        """Rows anew: their keys, when each was learnt last, and counts."""
        self._used = 1 + len(keys)
        self._keys, self._seen = np.concatenate(([np.uint32(0)], keys)), np.concatenate(([0], seen))
        self._counts = np.concatenate((np.zeros_like(counts, shape=(1, *counts.shape[1:])), counts))
        self._totals = self._counts.sum(axis=2)
        self._lessons = max(self._lessons, int(self._seen.max()))
        self._make_room(0)

    def _make_room(self, rows: int) -> None:
        """For so many more."""
        needed = self._used + rows
        self._counts = grown(self._counts, needed, *self._counts.shape[1:])
        size = len(self._counts)
        self._totals, self._keys, self._seen = (
            grown(self._totals, size, self.horizon),
            grown(self._keys, size),
            grown(self._seen, size),
        )
        if 2 * needed > len(self._slots) or rows == 0:
            self._slots = np.zeros(1 << (2 * needed).bit_length(), dtype=np.int32)
            _enter(self._keys, self._used, self._slots)

    def _learn(self, lessons: Sequence[Lesson[bytes]]) -> None:
        records = _joined([lesson.features for lesson in lessons])
        most = _MOST_COUNTS // int(self._counts[0].size)
        if len(lessons) > 1 and 2 * len(records) > most:  # a few at a time, where there are few rows
            for lesson in lessons:
                self._learn([lesson])
            return
        if self._used + len(records) > most:
            kept = 1 + np.sort(np.argsort(self._seen[1 : self._used], kind="stable")[self._used // 2 :])
            self._set(self._keys[kept], self._seen[kept], self._counts[kept])
        self._make_room(len(records))
        self._lessons += 1
        came = np.array([lesson.targets for lesson in lessons])
        self._used = _learn(
            records, came, self._slots, self._keys, self._seen, self._counts, self._totals, self._used, self._lessons
        )


@compiled
def _slot_of(key: int, slots: Rows, keys: Numbers) -> int:
    """The slot that holds the row of a key, or the free one where it would be."""
    at = key & (len(slots) - 1)
    while slots[at] != 0 and keys[slots[at]] != key:
        at = (at + 1) & (len(slots) - 1)
    return at


@compiled
def _enter(keys: Numbers, used: int, slots: Rows) -> None:
    for row in range(1, used):
        slots[_slot_of(keys[row], slots, keys)] = row


@compiled
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


@compiled
def _learn(
    records: Numbers,
    came: npt.NDArray[np.int64],
    slots: Rows,
    keys: Numbers,
    seen: npt.NDArray[np.int64],
    counts: Floats,
    totals: Floats,
    used: int,
    now: int,
) -> int:
    """Returns how many rows are in use then."""
    examples, horizon = came.shape
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
            seen[row] = now
            for step in range(horizon):
                if came[example, step] >= 0:
                    counts[row, step, came[example, step]] += 1.0
                    totals[row, step] += 1.0
        at = end
    return used


def _joined(records: Sequence[bytes]) -> Numbers:
    return np.frombuffer(b"".join(records), dtype=np.uint32)
