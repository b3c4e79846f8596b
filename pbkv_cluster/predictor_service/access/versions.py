"""Access models that remember at which version each of their parts changed last, so that any reader can be brought up to date.

A reader at version v needs the parts that have changed since v. A new reader is at version 0; the prior has version 1.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.predictor_service.state import encoding
from pbkv_cluster.predictor_service.state.file import StateRefused, read_state
from pbkv_cluster.reuse.model.access_model import KIND, VERSION, AccessModel, AccessUpdate, Changes
from pbkv_cluster.reuse.model.access_models import AccessModels
from pbkv_cluster.reuse.model.hazard import HazardModel


class VersionedModels:
    """Learns, and exports what has changed since a version. Not safe for threads."""

    def __init__(self, prior: AccessModel | None = None) -> None:
        """Args:
        prior: what models begin with; by default nothing.
        """
        self._models = AccessModels(prior)
        self._versions: dict[str, _Versions] = {}  # of each workload's model; the one taught longest ago first
        self.version = 1  # goes up with every log that is learnt from

    def learn(self, ended: AccessLog) -> None:
        """Raises:
        ValueError: the steps contradict each other; nothing was learnt.
        """
        learnt = self._models.learn(ended)
        self.version += 1
        for workload, fresh, changes, dropped in learnt:
            versions = None if fresh else self._versions.pop(workload, None)
            self._versions[workload] = versions or _Versions(self.version)
            self._versions[workload].changed(changes, self.version, len(self._models.of(workload).events))
            if dropped is not None:
                del self._versions[dropped]

    @property
    def contexts(self) -> tuple[int, int]:
        """Contexts of the next event, and of the use of blocks, in which anything was learnt."""
        changes = [versions.since(0) for versions in self._versions.values()]
        return sum(len(each.contexts) for each in changes), sum(len(each.rows) for each in changes)

    def parts_since(self, version: int, limit: int) -> list[bytes]:
        """What has changed since a version, as updates of at most some `limit` bytes each, to be applied in order."""
        return [part.to_bytes() for part in self.updates_since(version, limit)]

    def updates_since(self, version: int, limit: int) -> Iterator[AccessUpdate]:
        """The same before it is packed."""
        for update in self._updates(version):
            yield from update.parts(limit)

    def dump(self) -> bytes:
        """All that was learnt, without the prior."""
        models = [np.frombuffer(update.to_bytes(), dtype=np.uint8) for update in self._models.export()]
        return encoding.to_bytes({"models": models})

    def load(self, path: Path) -> None:
        """Replaces what was learnt by what is in a file.

        Raises:
            StateRefused: it does not fit; the models have not changed.
            OSError: the file cannot be read.
        """
        loaded = AccessModels(self._models.prior)
        try:
            for each in _saved(encoding.from_bytes(read_state(path, KIND, VERSION))):
                loaded.apply(each)
        except ValueError as error:
            raise StateRefused(f"{path} does not fit: {error}") from error
        self._models, self._versions = loaded, {}
        self.version += 1
        for update in loaded.export():
            assert update.workload is not None
            versions = self._versions[update.workload] = _Versions(self.version)
            changes = Changes(set(update.rows.tolist()), {context for context, _ in update.contexts})
            versions.changed(changes, self.version, len(update.contexts))

    def _updates(self, since: int) -> Iterator[AccessUpdate]:
        if since < 1:
            yield self._models.prior.export(workload=None, fresh=True)
        for workload, versions in self._versions.items():
            if versions.latest > since:
                model, fresh = self._models.of(workload), versions.opened > since
                yield model.export(versions.since(since), workload, fresh)


class _Versions:
    """At which versions the parts of one workload's model have changed, other than to be copied from the prior."""

    def __init__(self, opened: int) -> None:
        self.opened = self.latest = opened
        self._rows: npt.NDArray[np.int64] = np.zeros(HazardModel.rows(), dtype=np.int64)  # version of each
        self._contexts: dict[int, int] = {}  # version of each, the lowest first

    def changed(self, changes: Changes, version: int, contexts: int) -> None:
        """Notes a version.

        Args:
            changes: that it has made.
            version: its number.
            contexts: that the model has now; it drops those that were seen longest ago.
        """
        self.latest = version
        self._rows[list(changes.rows)] = version
        for context in changes.contexts:
            self._contexts.pop(context, None)
            self._contexts[context] = version
        while len(self._contexts) > contexts:
            del self._contexts[next(iter(self._contexts))]

    def since(self, version: int) -> Changes:
        """What has changed since a version."""
        contexts: set[int] = set()
        for context in reversed(self._contexts):
            if self._contexts[context] <= version:
                break
            contexts.add(context)
        return Changes(set(np.flatnonzero(self._rows > version).tolist()), contexts)


def _saved(state: dict[str, object]) -> Iterator[AccessUpdate]:
    models = state.get("models")
    if not isinstance(models, list) or not all(isinstance(each, np.ndarray) and each.dtype == np.uint8 for each in models):
        raise ValueError("it holds no models")
    for each in models:
        update = AccessUpdate.from_bytes(each.tobytes())
        if update.workload is None:
            raise ValueError("a model is of no workload")
        yield update
