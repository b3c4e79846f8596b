"""The access model: what has been learnt of how workflows use their blocks. It is trained, sent, saved and loaded."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.workflow.access_log import SYMBOLS, StepLog
from pbkv_cluster.reuse.model.contexts import fingerprint
from pbkv_cluster.reuse.model.examples import examples
from pbkv_cluster.reuse.model.hazard import BINS, BITS, HazardModel, Table
from pbkv_cluster.reuse.model.next_event import END, START, Event, NextEventModel

KIND, VERSION = "access", 2

FORMAT = f"{fingerprint()}-{BINS}-{BITS}"
"""What must be equal for the rows of two models to mean the same."""

_ARRAYS = ("belongs", "places", "chances", "uses", "weights", "names", "events")  # of a file
_ROW_BYTES = 4 + 2 * BINS * 4
_EVENT_BYTES = 32  # and its agent's name
_ROUNDING = 0.05  # of counts
_MAX_UNPACKED_BYTES = 256 << 20  # a model with every row of its tables in use, and a million events


@dataclass(slots=True)
class Changes:
    """Hash rows of the hazard model, and contexts of the next-event model, that have changed."""

    rows: set[int] = field(default_factory=set)
    contexts: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.rows or self.contexts)


@dataclass(frozen=True, slots=True)
class AccessUpdate:
    """Parts of a model as they are now. Applying one twice, or an older one before it, does no harm."""

    workload: str | None  # whose model it is; empty: all workflows'; None: the prior
    fresh: bool  # what was known of this workload before is void: it begins as the prior does, and the prior with nothing
    rows: npt.NDArray[np.int32]  # of the hazard model's tables
    at_risk: Table  # these rows
    uses: Table  # these rows
    weights: Table  # all
    contexts: tuple[tuple[int, tuple[tuple[Event, float], ...]], ...]

    @property
    def workflows(self) -> int:
        """Number of workflows that the model has learnt from, if that is among the parts; else 0."""
        for context, counts in self.contexts:
            if context == START:
                return int(dict(counts).get(END, 0))
        return 0

    def parts(self, limit: int) -> Iterator[AccessUpdate]:
        """The same in several updates, to be applied in this order; none if it changes nothing.

        Args:
            limit: bytes of each before it is compressed; a single large context may exceed it.
        """
        most = max(1, limit // _ROW_BYTES)
        bare = replace(self, fresh=False, rows=self.rows[:0], at_risk=self.at_risk[:0], uses=self.uses[:0])
        if self.fresh:
            yield replace(bare, fresh=True, contexts=())
        for start in range(0, len(self.rows), most):
            part = slice(start, start + most)
            yield replace(bare, rows=self.rows[part], at_risk=self.at_risk[part], uses=self.uses[part], contexts=())
        start = size = 0
        for at, (_, counts) in enumerate(self.contexts):
            own = sum(_EVENT_BYTES + 2 * len(agent) for (agent, _), _ in counts)
            if size and size + own > limit:
                yield replace(bare, contexts=self.contexts[start:at])
                start, size = at, 0
            size += own
        if size:
            yield replace(bare, contexts=self.contexts[start:])

    def to_bytes(self) -> bytes:
        """Compressed; see `from_bytes`."""
        names = sorted({agent for _, counts in self.contexts for (agent, _), _ in counts})
        number = {name: at for at, name in enumerate(names)}
        events = [
            (context, number[agent], symbol, count) for context, counts in self.contexts for (agent, symbol), count in counts
        ]
        columns = np.array(events, dtype=np.float64).reshape(-1, 4)
        out = io.BytesIO()
        np.savez_compressed(
            out,
            belongs=_text([FORMAT, self.workload, self.fresh]),
            places=self.rows,
            chances=self.at_risk,
            uses=self.uses,
            weights=self.weights,
            names=_text(names),
            events=columns,
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> AccessUpdate:
        """Raises:
        ValueError: it is not what `to_bytes` gives, or of another shape than this program's model.
        """
        try:
            _check_size(data)
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return cls._checked({name: arrays[name] for name in _ARRAYS})
        except Exception as error:  # numpy and zipfile have an error class of their own for each defect
            raise ValueError(f"not an access model: {error}") from error

    @classmethod
    def _checked(cls, found: dict[str, npt.NDArray[Any]]) -> AccessUpdate:
        workload, fresh = _belongs(json.loads(found["belongs"].tobytes()))
        rows, at_risk, uses = found["places"], found["chances"], found["uses"]
        _check("places", rows, rows.shape[:1] or (0,), np.int32)
        for name, counts in (("chances", at_risk), ("uses", uses)):
            _check(name, counts, (len(rows), BINS), np.float32)
        _check("weights", found["weights"], HazardModel.shape(), np.float32)
        if len(rows) and not 0 <= rows.min() <= rows.max() < HazardModel.rows():
            raise ValueError("places beyond the table")
        if (uses < 0.0).any() or (uses > at_risk + _ROUNDING).any():
            raise ValueError("uses must lie between 0 and chances")
        contexts = _contexts(found["events"], json.loads(found["names"].tobytes()))
        return cls(workload, fresh, rows, at_risk, uses, found["weights"], contexts)


class AccessModel:
    """The next-event model and the hazard model of one workload, learnt together."""

    def __init__(self) -> None:
        self.events = NextEventModel()
        self.hazard = HazardModel()
        self.version = 0  # goes up with every change

    def learn(self, steps: Sequence[StepLog]) -> Changes:
        """Learns from a workflow that has ended.

        Raises:
            ValueError: the steps contradict each other; nothing was learnt.
        """
        if not steps:
            return Changes()
        rows = self.hazard.learn(*examples(steps, self.events))
        self.version += 1
        return Changes(set(rows.tolist()), self.events.learn(steps))

    def copy(self) -> AccessModel:
        """Another model that has learnt the same."""
        other = AccessModel()
        other.apply(self.export())
        return other

    def export(self, changes: Changes | None = None, workload: str | None = "", fresh: bool = False) -> AccessUpdate:
        """The parts that have changed; without `changes`, all that was ever learnt.

        Args:
            changes: what has changed.
            workload: see `AccessUpdate`.
            fresh: see `AccessUpdate`.
        """
        if changes is None:
            rows = np.flatnonzero(self.hazard.at_risk[:, 0])
        else:
            rows = np.fromiter(changes.rows, dtype=np.int64, count=len(changes.rows))
            rows.sort()
        chosen = None if changes is None else changes.contexts
        return AccessUpdate(
            workload,
            fresh,
            rows.astype(np.int32),
            self.hazard.at_risk[rows],
            self.hazard.uses[rows],
            self.hazard.weights.copy(),
            tuple((context, tuple(counts.items())) for context, counts in self.events.counts(chosen)),
        )

    def apply(self, update: AccessUpdate) -> None:
        """Takes over parts of a model that has learnt elsewhere."""
        self.version += 1
        self.hazard.put(update.rows, update.at_risk, update.uses, update.weights)
        for context, counts in update.contexts:
            self.events.put(context, dict(counts))


def _text(content: object) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)


def _belongs(found: object) -> tuple[str | None, bool]:
    """The workload, and whether it is fresh."""
    if not isinstance(found, list) or len(found) != 3:
        raise ValueError("it does not say which model it is of")
    form, workload, fresh = found
    if form != FORMAT:
        raise ValueError(f"its tables have format {form!r}; this program's have {FORMAT!r}")
    if not (workload is None or isinstance(workload, str)) or not isinstance(fresh, bool):
        raise ValueError("it does not say which model it is of")
    return workload, fresh


def _contexts(events: npt.NDArray[Any], names: object) -> tuple[tuple[int, tuple[tuple[Event, float], ...]], ...]:
    if events.ndim != 2 or events.shape[1] != 4 or events.dtype != np.float64 or not np.isfinite(events).all():
        raise ValueError("events must be a finite table of four columns")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("names must be a list of texts")
    for column, (what, stop) in enumerate((("context", 1 << 32), ("agent", len(names)), ("symbol", SYMBOLS))):
        values = events[:, column]
        if ((values < 0) | (values >= stop) | (values != np.floor(values))).any():
            raise ValueError(f"an event's {what} is out of range")
    if (events[:, 3] <= 0.0).any():
        raise ValueError("an event's count is not above 0")
    found: dict[int, list[tuple[Event, float]]] = {}
    for context, agent, symbol, count in events.tolist():
        found.setdefault(int(context), []).append(((names[int(agent)], int(symbol)), count))
    return tuple((context, tuple(counts)) for context, counts in found.items())


def _check_size(data: bytes) -> None:
    """Compressed bytes can claim any size."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > _MAX_UNPACKED_BYTES:
        raise ValueError(f"it unpacks to {size:,} bytes")


def _check(name: str, array: npt.NDArray[Any], shape: tuple[int, ...], kind: type) -> None:
    if array.shape != shape or array.dtype != kind:
        raise ValueError(f"{name} has shape {array.shape} of {array.dtype}, not {shape} of {kind.__name__}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
