"""Learns from ended workflows in this process, on a thread of its own: whoever asks for the result never waits."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator
from copy import copy
from typing import Protocol

from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.predictor_service.access.learner import MAX_EXAMPLES, PART_BYTES, most_examples
from pbkv_cluster.predictor_service.access.versions import VersionedModels
from pbkv_cluster.reuse.model.access_model import AccessModel, AccessUpdate

log = logging.getLogger(__name__)

_MAX_QUEUED = 256  # logs


class Knowledge(Protocol):
    """Takes access logs, and has updates of the models after a while; perhaps also forecasts. Nothing here waits."""

    def report(self, ended: AccessLog) -> None:
        """Takes the log of an ended workflow."""

    def updates(self) -> Iterator[AccessUpdate]:
        """What has been learnt and not been given out yet, to be applied in this order."""

    def forecasts(self) -> Iterator[Forecast]:
        """Forecasts that have arrived and not been given out yet."""

    def close(self) -> None:
        """Stops; what still waits is lost."""


class LocalLearner:
    """Learns at once, in the caller's thread: where results must not depend on threads, as in replays."""

    def __init__(self, prior: AccessModel) -> None:
        """Args:
        prior: what every model begins with.
        """
        self._models = VersionedModels(prior)
        self._given_out = 0  # version
        self.learnt = 0  # logs
        self.refused = 0  # logs that contradicted themselves or were too large

    def report(self, ended: AccessLog) -> None:
        try:
            if most_examples(ended.steps) > MAX_EXAMPLES:
                raise ValueError(f"its {len(ended.steps)} steps are too many to learn from")
            self._models.learn(ended)
            self.learnt += 1
        except ValueError as error:
            self.refused += 1
            log.warning("nothing is learnt from an ended workflow: %s", error, extra={"workflow": ended.workflow})

    def updates(self) -> Iterator[AccessUpdate]:
        if self._given_out < self._models.version:
            since, self._given_out = self._given_out, self._models.version
            yield from self._models.updates_since(since, PART_BYTES)

    def forecasts(self) -> Iterator[Forecast]:
        return iter(())

    def close(self) -> None:
        pass


class BackgroundLearner:
    """`LocalLearner` on a daemon thread. Beyond a bound, the logs that come are dropped."""

    def __init__(self, prior: AccessModel) -> None:
        """Args:
        prior: what every model begins with.
        """
        self._learner = LocalLearner(prior)
        self._logs: queue.Queue[AccessLog | None] = queue.Queue(_MAX_QUEUED)
        self._updates: deque[AccessUpdate] = deque(self._learner.updates())  # at first, the prior
        self._thread = threading.Thread(target=self._run, name="pbkv-learner", daemon=True)
        self._thread.start()
        self.dropped = 0  # logs

    def report(self, ended: AccessLog) -> None:
        steps = [copy(step) for step in ended.steps]  # a step that still runs goes on writing to its own
        try:
            self._logs.put_nowait(ended._replace(steps=steps))
        except queue.Full:
            self.dropped += 1

    def updates(self) -> Iterator[AccessUpdate]:
        while self._updates:
            yield self._updates.popleft()

    def forecasts(self) -> Iterator[Forecast]:
        return iter(())

    def close(self) -> None:
        self._logs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (ended := self._logs.get()) is not None:
            self._learner.report(ended)
            self._updates.extend(self._learner.updates())
