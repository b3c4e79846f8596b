"""An access model that remembers at which version each of its parts changed last, so that any reader can be brought up to date.

A reader at version v needs the parts that have changed since v. A new reader is at version 0.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.predictor_service.state.file import StateRefused, read_state
from pbkv_cluster.reuse.model.access_model import KIND, VERSION, AccessModel, Changes
from pbkv_cluster.reuse.model.hazard import HazardModel


class VersionedModel:
    """Learns, and exports what has changed since a version. Not safe for threads."""

    def __init__(self) -> None:
        self._model = AccessModel()
        self._rows: npt.NDArray[np.int64] = np.zeros(HazardModel.rows(), dtype=np.int64)  # version of each
        self._contexts: dict[int, int] = {}  # version of each, the lowest first
        self.version = 0  # goes up with every log that is learnt from

    def learn(self, steps: Sequence[StepLog]) -> None:
        """Raises:
        ValueError: the steps contradict each other; nothing was learnt.
        """
        self._changed(self._model.learn(steps))

    def parts_since(self, version: int, limit: int) -> list[bytes]:
        """What has changed since a version, as updates of at most some `limit` bytes each, to be applied in order."""
        rows = np.flatnonzero(self._rows > version)
        contexts: set[int] = set()
        for context in reversed(self._contexts):
            if self._contexts[context] <= version:
                break
            contexts.add(context)
        update = self._model.export(Changes(set(rows.tolist()), contexts) if version else None)
        return [part.to_bytes() for part in update.parts(limit)]

    def dump(self) -> bytes:
        """All that was learnt."""
        return self._model.dump()

    def load(self, path: Path) -> None:
        """Replaces the model by the one in a file.

        Raises:
            StateRefused: it does not fit; the model has not changed.
            OSError: the file cannot be read.
        """
        try:
            self._model = AccessModel.load(read_state(path, KIND, VERSION))
        except ValueError as error:
            raise StateRefused(f"{path} does not fit: {error}") from error
        self._rows[:] = 0
        self._contexts = {}
        known = self._model.export()
        if len(known.rows) or known.contexts:
            self._changed(Changes(set(known.rows.tolist()), {context for context, _ in known.contexts}))

    def _changed(self, changes: Changes) -> None:
        self.version += 1
        self._rows[list(changes.rows)] = self.version
        for context in changes.contexts:
            self._contexts.pop(context, None)
            self._contexts[context] = self.version
        while len(self._contexts) > len(self._model.events):  # the model drops those seen longest ago, too
            del self._contexts[next(iter(self._contexts))]
