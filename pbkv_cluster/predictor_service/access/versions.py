"""An access model that remembers when each of its parts changed last, so that any reader can be brought up to date.

One number for each part serves readers of every age: what a reader has not seen yet is what is younger than the version that
it was brought up to. A new one has seen version 0.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.access_log import StepLog
from pbkv_cluster.predictor_service.state.file import StateRefused, read_state
from pbkv_cluster.reuse.model.access_model import KIND, VERSION, AccessModel, Changes
from pbkv_cluster.reuse.model.hazard import HazardModel


class VersionedModel:
    """Learns, and tells what has changed. Not safe for threads."""

    def __init__(self) -> None:
        self._model = AccessModel()
        self._places: npt.NDArray[np.int64] = np.zeros(HazardModel.places(), dtype=np.int64)  # version of each
        self._contexts: dict[int, int] = {}  # version of each, longest unchanged first
        self.version = 0  # grows with every log that is learnt from

    def learn(self, steps: Sequence[StepLog]) -> None:
        """Raises:
        ValueError: the steps contradict each other; nothing was learnt.
        """
        self._changed(self._model.learn(steps))

    def parts_since(self, version: int, limit: int) -> list[bytes]:
        """What has changed since a version, as updates of about `limit` bytes each at most, to be applied in order."""
        places = np.flatnonzero(self._places > version)
        contexts: set[int] = set()
        for context in reversed(self._contexts):
            if self._contexts[context] <= version:
                break
            contexts.add(context)
        update = self._model.export(Changes(set(places.tolist()), contexts) if version else None)
        return [part.to_bytes() for part in update.parts(limit)]

    def dump(self) -> bytes:
        """All that was learnt."""
        return self._model.dump()

    def load(self, path: Path) -> None:
        """Replaces what has been learnt by what a file holds.

        Raises:
            StateRefused: it does not fit; the model is as before.
            OSError: the file cannot be read.
        """
        try:
            self._model = AccessModel.load(read_state(path, KIND, VERSION))
        except ValueError as error:
            raise StateRefused(f"{path} does not fit: {error}") from error
        self._places[:] = 0
        self._contexts = {}
        known = self._model.export()
        if len(known.places) or known.contexts:
            self._changed(Changes(set(known.places.tolist()), {context for context, _ in known.contexts}))

    def _changed(self, changes: Changes) -> None:
        self.version += 1
        self._places[list(changes.places)] = self.version
        for context in changes.contexts:
            self._contexts.pop(context, None)
            self._contexts[context] = self.version
        while len(self._contexts) > len(self._model.events):  # the model drops what was longest unseen too
            del self._contexts[next(iter(self._contexts))]
