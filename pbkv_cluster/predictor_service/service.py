"""Orders events, keeps the open workflows, and broadcasts forecasts. Runs on one event loop, without locks."""

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from pbkv_cluster.core.events import MAX_HIDDEN_BYTES, EventKind, WorkflowEvent
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.text.prompt_pieces import PIECES
from pbkv_cluster.core.text.words import WORD_BITS, WORDS
from pbkv_cluster.predictor_service.broadcast.subscription import Subscription
from pbkv_cluster.predictor_service.predictor.base import PREDICTORS, Predictor
from pbkv_cluster.predictor_service.predictor.explanation import Explanation

log = logging.getLogger(__name__)

MAX_ID_BYTES = 256
MAX_SUBSCRIBERS = 4096
_MAX_STEP = 2**31 - 1
_STEP_EVENTS = (EventKind.STEP_STARTED, EventKind.STEP_FINISHED)


class Reported(NamedTuple):
    """What became of a batch of events."""

    accepted: int
    ignored: int  # duplicates, late ones, and those of workflows that had ended


@dataclass(slots=True)
class _Open:
    sequence: int  # of the last event
    time: float  # of the last event, as its sender stamped it
    heard_at: float  # on this process's clock
    workers: frozenset[str] | None  # that have had steps of it; None: not known, it may be any


class PredictorService:
    """Events in, forecasts out. `report` and `predict` may be called at any time; `run` broadcasts."""

    def __init__(
        self,
        config: PredictorConfig,
        clock: Clock,
        predictor: Predictor | None = None,
        *,
        lease_s: float = 3600.0,
        max_workflows: int = 200_000,
        max_ended: int = 65_536,
    ) -> None:
        """Args:
        config: names the model, where `predictor` does not give one, and the limits of the broadcast.
        clock: for the age of workflows and the stamps of forecasts.
        predictor: the model.
        lease_s: silence after which a workflow leaves memory; it is taken up again when it speaks.
        max_workflows: open workflows kept; beyond, the one that was silent longest leaves.
        max_ended: ended workflows remembered, so that their late events are ignored.

        Raises:
            InvalidArgument: there is no model of the configured name.
        """
        self.predictor = predictor or PREDICTORS.get(config.model)(config)
        self._config = config
        self._clock = clock
        self._lease_s = lease_s
        self._max_workflows = max_workflows
        self._max_ended = max_ended
        self._open: OrderedDict[str, _Open] = OrderedDict()  # longest silent first
        self._ended: dict[str, float] = {}  # time of the end, oldest first
        self._changed: dict[str, frozenset[str] | None] = {}  # since the last broadcast, and the workers to be told
        self._subscriptions: dict[Subscription, None] = {}
        self._wake = asyncio.Event()
        self._failure = ""
        # Workers ignore lower epochs than they have seen. Counting on from the microseconds of the start, a restarted
        # predictor is always ahead, for no predictor makes a million batches a second.
        self._epoch = max(0, int(clock.wall() * 1e6))

    @property
    def open_workflows(self) -> int:
        """Workflows in memory."""
        return len(self._open)

    @property
    def subscribers(self) -> int:
        """Open subscriptions."""
        return len(self._subscriptions)

    def report(self, events: Sequence[WorkflowEvent]) -> Reported:
        """Takes events, each workflow's in order. A WORKFLOW_STARTED stamped after a workflow's last event opens it anew.

        Raises:
            InvalidArgument: an event is malformed; none of the batch was taken.
            Unavailable: the service has failed or stopped.
        """
        self._check_running()
        for event in events:
            _check(event)
        accepted = sum([self._take(event) for event in events])
        while len(self._open) > self._max_workflows:
            self._drop_longest_silent()
        if self._changed:
            self._wake.set()
        return Reported(accepted, len(events) - accepted)

    def predict(self, workflows: Sequence[str]) -> Forecasts:
        """Present forecasts of those of `workflows` that are open, or known to have ended; others are left out.

        Raises:
            Unavailable: the service has failed or stopped.
        """
        self._check_running()
        return self._forecast(dict.fromkeys(name for name in workflows if name in self._open or name in self._ended))

    def explain(self, workflow: str) -> Explanation:
        """Why the forecast of an open workflow is what it is.

        Raises:
            InvalidArgument: the id is empty.
            NotFound: the workflow is not open, or nothing was heard of it.
            Unavailable: the service has failed or stopped.
        """
        self._check_running()
        if not workflow:
            raise InvalidArgument("workflow_id", "must not be empty")
        if workflow in self._ended:
            raise NotFound(f"workflow {workflow!r} has ended")
        found = self.predictor.explain(workflow) if workflow in self._open else None
        if found is None:
            raise NotFound(f"the predictor has heard nothing of a workflow {workflow!r}")
        return found

    def subscribe(self, name: str, placed_only: bool = False) -> Subscription:
        """A new subscription; its first batch is a snapshot.

        Args:
            name: of the subscriber: a worker's id, or for logs alone.
            placed_only: it wants the forecasts of those workflows only that have had a step placed on it.

        Raises:
            ResourceExhausted: there are too many.
            Unavailable: the service has failed or stopped.
        """
        self._check_running()
        if len(self._subscriptions) >= MAX_SUBSCRIBERS:
            raise ResourceExhausted(f"{MAX_SUBSCRIBERS} subscribers watch forecasts already")
        subscription = Subscription(
            name,
            self._config.subscriber_queue,
            self._snapshot,
            lambda closed: self._subscriptions.pop(closed, None),
            placed_only,
        )
        self._subscriptions[subscription] = None
        return subscription

    def flush(self) -> int:
        """Broadcasts the forecasts of the workflows that changed, in one batch; silent ones leave first.

        Returns how many forecasts were made. Without subscribers none are: a new one starts with a snapshot.
        """
        oldest_allowed = self._clock.now() - self._lease_s
        while self._open and next(iter(self._open.values())).heard_at < oldest_allowed:
            self._drop_longest_silent()
        changed, self._changed = self._changed, {}
        if not changed or not self._subscriptions:
            return 0
        forecasts = self._forecast(changed)
        for subscription in self._subscriptions:
            wanted: Sequence[int] = range(len(forecasts))
            if subscription.placed_only:
                held = enumerate(map(changed.__getitem__, forecasts.workflows))
                wanted = [at for at, workers in held if _is_on(subscription.name, workers)]
            if wanted and subscription.offer(forecasts, wanted):
                log.warning("subscriber %r fell behind: it is sent a snapshot", subscription.name)
        return len(forecasts)

    async def run(self) -> None:
        """Broadcasts until cancelled: at once after a quiet time, else once per broadcast interval. Learns in between."""
        sweep_s = min(1.0, self._lease_s / 4)
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(sweep_s):
                    await self._wake.wait()
            except TimeoutError:
                pass  # time to look for silent workflows
            self._wake.clear()
            self.flush()
            due = loop.time() + self._config.broadcast_interval_s
            while self.predictor.learn_some() and (not self._wake.is_set() or loop.time() < due):  # noqa: ASYNC110  # that would only be waited for
                await asyncio.sleep(0)  # events come first
            await asyncio.sleep(due - loop.time())

    def close(self, reason: str) -> None:
        """Ends every subscription and refuses calls from now on, telling `reason`."""
        self._failure = reason
        for subscription in list(self._subscriptions):
            subscription.close(reason)

    def _take(self, event: WorkflowEvent) -> bool:
        name = event.workflow
        state = self._open.get(name)
        if state is None:
            if name in self._ended and not (event.kind is EventKind.WORKFLOW_STARTED and event.time > self._ended[name]):
                return False
            self._ended.pop(name, None)
        elif event.sequence <= state.sequence:
            if event.kind is not EventKind.WORKFLOW_STARTED or event.time <= state.time:
                return False
            self.predictor.forget(name)  # its end was lost, and its id is used again
            state = None
        self.predictor.observe(event)
        workers = _workers(state, event)
        if event.kind is not EventKind.STEP_PLACED or workers is None or state is None or workers != state.workers:
            self._changed[name] = workers  # else a step was placed where others were: that changes nothing
        if event.kind is EventKind.WORKFLOW_ENDED:
            self._open.pop(name, None)
            self._ended[name] = event.time
            if len(self._ended) > self._max_ended:
                del self._ended[next(iter(self._ended))]
        else:
            self._open[name] = _Open(event.sequence, event.time, self._clock.now(), workers)
            self._open.move_to_end(name)
        return True

    def _drop_longest_silent(self) -> None:
        # Not remembered as ended: should it speak again after all, it is taken up where it is.
        # Nor is anyone told that it has ended, which only the gateway knows: its last forecast loses weight by age.
        name, _ = self._open.popitem(last=False)
        self.predictor.forget(name)
        self._changed.pop(name, None)

    def _snapshot(self, subscription: Subscription) -> Forecasts:
        if not subscription.placed_only:
            return self._forecast(self._open)
        return self._forecast([name for name, state in self._open.items() if _is_on(subscription.name, state.workers)])

    def _forecast(self, workflows: Collection[str]) -> Forecasts:
        self._epoch += 1
        made_at = self._clock.wall()
        alive = [name for name in workflows if name in self._open]
        forecasts = self.predictor.forecast(alive, self._epoch, made_at)
        if len(alive) == len(workflows):
            return forecasts
        over = [Forecast(name, self._epoch, made_at, (), ended=True) for name in workflows if name not in self._open]
        return Forecasts.joined([forecasts, Forecasts.of(over)])

    def _check_running(self) -> None:
        if self._failure:
            raise Unavailable(self._failure)


def _workers(state: _Open | None, event: WorkflowEvent) -> frozenset[str] | None:
    """The workers that have had steps of a workflow, after one more event. Where one was lost, it may have placed a step."""
    known: frozenset[str] | None
    if state is None:
        known = frozenset() if event.kind is EventKind.WORKFLOW_STARTED else None
    else:
        known = state.workers if event.sequence == state.sequence + 1 else None
    return known | {event.worker} if known is not None and event.kind is EventKind.STEP_PLACED else known


def _is_on(worker: str, workers: frozenset[str] | None) -> bool:
    return workers is None or worker in workers


def _check(event: WorkflowEvent) -> None:
    if not event.workflow:
        raise InvalidArgument("events.workflow_id", "must not be empty")
    for field, name in (
        ("workflow_id", event.workflow),
        ("workload", event.workload),
        ("agent_id", event.agent),
        ("call_site", event.call_site),
        ("tool", event.tool),
        ("worker_id", event.worker),
    ):
        if len(name) > MAX_ID_BYTES or len(name.encode()) > MAX_ID_BYTES:
            raise InvalidArgument(f"events.{field}", f"must have at most {MAX_ID_BYTES} bytes, got {len(name.encode())}")
    if event.sequence < 0:
        raise InvalidArgument("events.sequence", f"must not be negative, got {event.sequence}")
    if not math.isfinite(event.time):
        raise InvalidArgument("events.time_s", f"must be a finite number of seconds, got {event.time}")
    if event.kind in _STEP_EVENTS and not event.agent:
        raise InvalidArgument("events.agent_id", "must not be empty in a step event")
    if event.kind is EventKind.STEP_PLACED and not event.worker:
        raise InvalidArgument("events.worker_id", "must not be empty where a step was placed")
    for field, step in (("step", event.step), ("parent_step", event.parent_step or 0)):
        if not 0 <= step <= _MAX_STEP:
            raise InvalidArgument(f"events.{field}", f"must be from 0 to {_MAX_STEP}, got {step}")
    for field, tokens in (("prompt_tokens", event.prompt_tokens), ("output_tokens", event.output_tokens)):
        if tokens < 0:
            raise InvalidArgument(f"events.{field}", f"must not be negative, got {tokens}")
    if event.expected_s is not None and not 0.0 <= event.expected_s < math.inf:
        raise InvalidArgument("events.expected_s", f"must be a finite number of seconds, at least 0, got {event.expected_s}")
    _check_content(event)


def _check_content(event: WorkflowEvent) -> None:
    if len(event.pieces) > PIECES:
        raise InvalidArgument("events.pieces", f"at most {PIECES}, got {len(event.pieces)}")
    if len(event.words) > WORDS:
        raise InvalidArgument("events.words", f"at most {WORDS}, got {len(event.words)}")
    if event.words and not 0 <= min(event.words) <= max(event.words) < 1 << WORD_BITS:
        raise InvalidArgument("events.words", f"must be below 2^{WORD_BITS}, got {max(event.words)}")
    size = len(event.hidden)
    if size > MAX_HIDDEN_BYTES:
        raise InvalidArgument("events.hidden", f"at most {MAX_HIDDEN_BYTES} bytes, got {size}")
    if size % 2:
        raise InvalidArgument("events.hidden", f"{size} bytes are not a whole number of float16 values")
    if size and not np.isfinite(np.frombuffer(event.hidden, dtype="<f2")).all():
        raise InvalidArgument("events.hidden", "must hold finite values only")
