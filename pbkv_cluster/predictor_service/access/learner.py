"""Learns how workflows use their blocks from the access logs of ended workflows, and sends the model to workers.

Learning from one workflow takes milliseconds, packing a large model longer. Both happen on one thread, which alone touches the
model; the event loop awaits it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

from pbkv_cluster.core.background import first_failure
from pbkv_cluster.core.workflow.access_log import AccessLog, StepLog
from pbkv_cluster.predictor_service.access.versions import VersionedModels
from pbkv_cluster.predictor_service.broadcast.subscription import Subscription
from pbkv_cluster.predictor_service.state.file import write_state
from pbkv_cluster.reuse.model.access_model import KIND, VERSION, AccessModel
from pbkv_cluster.reuse.model.examples import stride_of

log = logging.getLogger(__name__)
T = TypeVar("T")

PART_BYTES = 256 << 10  # before compression: what a worker unpacks in some milliseconds
_MAX_QUEUED_STEPS = 65_536
MAX_EXAMPLES = 150_000  # examples of one log, one for each segment after each step; each takes some 5 KB during learning


class Taken(NamedTuple):
    """The outcome of reported logs."""

    accepted: int
    dropped: int  # of those that waited, the oldest


class AccessLearner:
    """Takes access logs, and sends parts of the model to the subscribers that want them. `run` does the work."""

    def __init__(
        self, interval_s: float, prior: AccessModel | None = None, *, max_queued_steps: int = _MAX_QUEUED_STEPS
    ) -> None:
        """Args:
        interval_s: time between two updates for one subscriber.
        prior: what the model of a workload begins with; by default nothing.
        max_queued_steps: steps in logs that wait; beyond that, the oldest log is dropped.
        """
        self._interval_s = interval_s
        self._max_queued_steps = max_queued_steps
        self._models = VersionedModels(prior)  # used on the thread alone
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="access-learner")
        self._queue: deque[AccessLog] = deque()
        self._queued_steps = 0
        self._queued, self._changed = asyncio.Event(), asyncio.Event()  # logs wait; a subscriber lacks something
        self._feeds: dict[Subscription, int] = {}  # version that each was sent
        self._version = self._saved = self._models.version  # of the models; of the file
        self.learnt = 0  # logs learnt from
        self.refused = 0  # logs that contradicted themselves or were too large
        self.dropped = 0  # logs that made room for newer ones

    @property
    def queued(self) -> int:
        """Logs that wait."""
        return len(self._queue)

    def report(self, logs: Sequence[AccessLog]) -> Taken:
        """Queues logs to be learnt from; never waits."""
        for each in logs:
            self._queue.append(each)
            self._queued_steps += len(each.steps)
        dropped = 0
        while self._queued_steps > self._max_queued_steps:
            self._queued_steps -= len(self._queue.popleft().steps)
            dropped += 1
        if dropped:
            log.warning("learning cannot keep up: %d access logs dropped", dropped)
        self.dropped += dropped
        self._queued.set()
        return Taken(len(logs), dropped)

    def feed(self, subscription: Subscription) -> None:
        """Keeps a subscriber's model up to date from now on; the whole model follows the first snapshot of forecasts."""
        self._feeds[subscription] = 0
        self._changed.set()

    def load(self, path: Path) -> None:
        """Continues from a saved model. Only before `run`.

        Raises:
            StateRefused: it does not fit; nothing has changed.
            OSError: it cannot be read.
        """
        self._models.load(path)
        self._version = self._saved = self._models.version

    async def save(self, path: Path) -> None:
        """Writes the model if it has changed since it was last written.

        Raises:
            OSError: it cannot be written.
        """
        state, version = await self._on_thread(self._dump, self._saved)
        if state is not None:
            await asyncio.to_thread(write_state, path, KIND, VERSION, state)
            self._saved = version

    async def run(self) -> NoReturn:
        """Learns and sends until cancelled."""
        tasks = [asyncio.create_task(self._learn()), asyncio.create_task(self._send())]
        await first_failure(*tasks)
        raise AssertionError("both run until cancelled")

    async def close(self) -> None:
        """Stops the thread, after `run` has ended. Logs that still wait are lost."""
        if self._queue:
            log.warning("%d access logs were not learnt from", len(self._queue))
        await asyncio.to_thread(self._thread.shutdown)

    async def _learn(self) -> None:
        while True:
            await self._queued.wait()
            self._queued.clear()
            while self._queue:
                each = self._queue.popleft()
                self._queued_steps -= len(each.steps)
                await self._learn_from(each)

    async def _learn_from(self, each: AccessLog) -> None:
        try:
            if most_examples(each.steps) > MAX_EXAMPLES:
                raise ValueError(f"its {len(each.steps)} steps are too many to learn from")
            self._version = await self._on_thread(self._learnt, each)
        except ValueError as error:
            self.refused += 1
            log.warning("nothing is learnt from an ended workflow: %s", error, extra={"workflow": each.workflow})
        else:
            self.learnt += 1
            self._changed.set()

    def _learnt(self, each: AccessLog) -> int:
        self._models.learn(each)
        return self._models.version

    async def _send(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._offer()
            await asyncio.sleep(self._interval_s)
            if any(sent < self._version for sent in self._feeds.values()):
                self._changed.set()

    async def _offer(self) -> None:
        """Sends each idle subscriber what it lacks. Parts are packed once for all subscribers at the same version."""
        self._feeds = {subscription: sent for subscription, sent in self._feeds.items() if not subscription.closed}
        lagging: dict[int, list[Subscription]] = {}
        for subscription, sent in self._feeds.items():
            if sent < self._version and subscription.idle:
                lagging.setdefault(sent, []).append(subscription)
        for sent, group in lagging.items():
            parts, version = await self._on_thread(self._parts, sent)
            for subscription in group:
                subscription.offer_access(parts)
                self._feeds[subscription] = version

    def _dump(self, saved: int) -> tuple[bytes | None, int]:
        version = self._models.version
        return (None if version == saved else self._models.dump()), version

    def _parts(self, since: int) -> tuple[list[bytes], int]:
        return self._models.parts_since(since, PART_BYTES), self._models.version

    async def _on_thread(self, call: Callable[..., T], *args: object) -> T:
        # A cancelled call still runs to its end on the thread, and the next call waits for it.
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


def most_examples(steps: Sequence[StepLog]) -> int:
    """An upper bound on the examples of a log: the segments after each step that is learnt from.

    A step splits at most two segments, and adds one for each of its runs and one for what it generates.
    """
    total = segments = 0
    for step in steps:
        segments += len(step.runs) + 3
        total += segments
    return total // stride_of(len(steps))
