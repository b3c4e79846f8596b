"""What has been learnt of how workflows use their blocks: next events and hazards, to be trained, sent, saved and loaded."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.store.access.examples import examples
from pbkv_cluster.store.access.hazard import BINS, HazardModel, Table
from pbkv_cluster.store.access.history import StepLog
from pbkv_cluster.store.access.next_event import Event, NextEventModel

KIND, VERSION = "access", 1


@dataclass(slots=True)
class Changes:
    """Which parts of a model have changed."""

    places: set[int] = field(default_factory=set)
    contexts: set[int] = field(default_factory=set)

    def __or__(self, other: Changes) -> Changes:
        return Changes(self.places | other.places, self.contexts | other.contexts)

    def __bool__(self) -> bool:
        return bool(self.places or self.contexts)


@dataclass(frozen=True, slots=True)
class AccessUpdate:
    """Parts of a model as they are now. Applying one twice, or an older one's parts with it, does no harm."""

    places: npt.NDArray[np.int32]
    chances: Table
    uses: Table
    weights: Table
    contexts: tuple[tuple[int, tuple[tuple[Event, float], ...]], ...]

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
            places=self.places,
            chances=self.chances,
            uses=self.uses,
            weights=self.weights,
            names=np.frombuffer(json.dumps(names).encode(), dtype=np.uint8),
            events=columns,
        )
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> AccessUpdate:
        """Raises:
        ValueError: it is not what `to_bytes` gives, or of another shape than this program's model.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in ("places", "chances", "uses", "weights", "names", "events")}
            names = json.loads(found["names"].tobytes())
            contexts = _contexts(found["events"], names)
        except (OSError, KeyError, IndexError, TypeError, ValueError, EOFError) as error:
            raise ValueError(f"not an access model: {error}") from error
        except Exception as error:  # zipfile has an error class of its own for each defect
            raise ValueError(f"not an access model: {error}") from error
        places, empty = found["places"], HazardModel.shape()
        _check("places", places, (places.size,), np.int32)
        for name in ("chances", "uses"):
            _check(name, found[name], (len(places), BINS), np.float32)
        _check("weights", found["weights"], empty, np.float32)
        if len(places) and not 0 <= places.min() <= places.max() < HazardModel.places():
            raise ValueError("not an access model: places beyond the table")
        if not ((found["uses"] >= 0) & (found["uses"] <= found["chances"])).all():
            raise ValueError("not an access model: uses must not be negative, nor more than chances")
        return cls(places, found["chances"], found["uses"], found["weights"], contexts)


class AccessModel:
    """Next events and hazards."""

    def __init__(self) -> None:
        self.events = NextEventModel()
        self.hazard = HazardModel()

    def learn(self, steps: Sequence[StepLog]) -> Changes:
        """Learns from a workflow that has ended.

        Raises:
            ValueError: the steps contradict each other; nothing was learnt.
        """
        if not steps:
            return Changes()
        places = self.hazard.learn(*examples(steps, self.events))
        return Changes(set(places.tolist()), self.events.learn(steps))

    def export(self, changes: Changes | None = None) -> AccessUpdate:
        """The parts that have changed; all that was ever learnt without `changes`."""
        if changes is None:
            places = np.flatnonzero(self.hazard.chances[:, 0])
        else:
            places = np.fromiter(changes.places, dtype=np.int64, count=len(changes.places))
            places.sort()
        chosen = None if changes is None else changes.contexts
        return AccessUpdate(
            places.astype(np.int32),
            self.hazard.chances[places],
            self.hazard.uses[places],
            self.hazard.weights.copy(),
            tuple((context, tuple(counts.items())) for context, counts in self.events.counts(chosen)),
        )

    def apply(self, update: AccessUpdate) -> None:
        """Takes over what another model has learnt."""
        self.hazard.put(update.places, update.chances, update.uses, update.weights)
        for context, counts in update.contexts:
            self.events.put(context, dict(counts))

    def dump(self) -> bytes:
        """All that was learnt."""
        return self.export().to_bytes()

    @classmethod
    def load(cls, data: bytes) -> AccessModel:
        """A model that was dumped.

        Raises:
            ValueError: it does not fit.
        """
        model = cls()
        model.apply(AccessUpdate.from_bytes(data))
        return model


def train(logs: Iterable[Sequence[StepLog]]) -> AccessModel:
    """A model that has seen some workflows, one after the other."""
    model = AccessModel()
    for steps in logs:
        model.learn(steps)
    return model


def _contexts(events: npt.NDArray[Any], names: list[str]) -> tuple[tuple[int, tuple[tuple[Event, float], ...]], ...]:
    if events.ndim != 2 or events.shape[1] != 4 or not np.isfinite(events).all():
        raise ValueError("events must be a finite table of four columns")
    if (events[:, :3] % 1).any() or not ((events[:, 0] >= 0) & (events[:, 0] < 1 << 32) & (events[:, 3] > 0)).all():
        raise ValueError("events must be hashes, numbers of names, symbols and positive counts")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("names must be a list of texts")
    found: dict[int, list[tuple[Event, float]]] = {}
    for context, agent, symbol, count in events.tolist():
        if not 0 <= agent < len(names):
            raise ValueError("an event's agent has no name")
        found.setdefault(int(context), []).append(((names[int(agent)], int(symbol)), count))
    return tuple((context, tuple(counts)) for context, counts in found.items())


def _check(name: str, array: npt.NDArray[Any], shape: tuple[int, ...], kind: type) -> None:
    if array.shape != shape or array.dtype != kind:
        raise ValueError(
            f"not an access model: {name} has shape {array.shape} of {array.dtype}, not {shape} of {kind.__name__}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"not an access model: {name} must be finite")
