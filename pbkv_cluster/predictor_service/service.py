"""The predictor service as a plain object: events in, forecasts out. Runs on one event loop, without locks."""

import asyncio
import secrets
from collections.abc import Collection, Sequence
from typing import NamedTuple

from pbkv_cluster.core import checks
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import NotFound, Unavailable
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast
from pbkv_cluster.core.workflow.events import WorkflowEvent
from pbkv_cluster.predictor_service.broadcast.broadcaster import Broadcaster
from pbkv_cluster.predictor_service.broadcast.subscription import Subscription
from pbkv_cluster.predictor_service.events.open_workflows import EventOutcome, OpenWorkflows
from pbkv_cluster.predictor_service.events.validation import check_event
from pbkv_cluster.predictor_service.predictor import PREDICTORS, Predictor
from pbkv_cluster.predictor_service.predictor.explanation import Explanation


class Reported(NamedTuple):
    """How many events of a batch were accepted and ignored; see `EventOutcome`."""

    accepted: int
    ignored: int


class PredictorService:
    """`report` and `predict` may be called at any time; `run` broadcasts."""

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
        config: names the model, unless `predictor` is given, and the limits of the broadcast.
        clock: for the silence of workflows and the time stamps of forecasts.
        predictor: the model.
        lease_s: silence after which a workflow leaves memory; with its next event it is back.
        max_workflows: open workflows kept; beyond, the one silent for longest leaves.
        max_ended: ended workflows remembered, so that their late events are ignored.

        Raises:
            InvalidArgument: there is no model of the configured name.
        """
        self.predictor = predictor or PREDICTORS.get(config.model)(config)
        self._config = config
        self._clock = clock
        self._lease_s = lease_s
        self._workflows = OpenWorkflows(clock, lease_s, max_workflows, max_ended)
        self._broadcaster = Broadcaster(config.subscriber_queue, self._workflows, self._forecast)
        self._failure = ""
        self.accepted = self.ignored = 0  # events
        self.forecasts_made = 0  # for the broadcast
        self.instance = secrets.randbelow(2**64 - 1) + 1  # tells senders of events that open workflows are not known any more
        # Workers ignore epochs below those they have seen. Counting on from the microseconds at start-up keeps a restarted
        # predictor ahead, since no predictor makes a million batches a second.
        self._epoch = max(0, int(clock.wall() * 1e6))

    @property
    def open_workflows(self) -> int:
        """Workflows in memory."""
        return len(self._workflows)

    @property
    def subscribers(self) -> int:
        """Open subscriptions."""
        return len(self._broadcaster)

    @property
    def subscribers_behind(self) -> int:
        """Times that a subscriber was too slow, and is sent a snapshot."""
        return self._broadcaster.fell_behind

    def report(self, events: Sequence[WorkflowEvent]) -> Reported:
        """Takes events; each workflow's must be in order.

        Raises:
            InvalidArgument: an event is malformed; none of the batch was taken.
            Unavailable: the service has failed or stopped.
        """
        self._check_running()
        for event in events:
            check_event(event)
        accepted = sum([self._take(event).accepted for event in events])
        self.accepted += accepted
        self.ignored += len(events) - accepted
        self._forget(self._workflows.drop_excess())
        self._broadcaster.wake()
        return Reported(accepted, len(events) - accepted)

    def predict(self, workflows: Sequence[str]) -> Forecasts:
        """Present forecasts of those of `workflows` that are open, or known to have ended; the others are left out.

        Raises:
            Unavailable: the service has failed or stopped.
        """
        self._check_running()
        known = [name for name in workflows if name in self._workflows or self._workflows.has_ended(name)]
        return self._forecast(dict.fromkeys(known))

    def explain(self, workflow: str) -> Explanation:
        """Why the forecast of an open workflow is what it is.

        Raises:
            InvalidArgument: the id is empty, or too long for one.
            NotFound: the workflow is not open, or unknown.
            Unavailable: the service has failed or stopped.
        """
        self._check_running()
        checks.required_name("workflow_id", workflow)
        if self._workflows.has_ended(workflow):
            raise NotFound(f"workflow {workflow!r} has ended")
        found = self.predictor.explain(workflow) if workflow in self._workflows else None
        if found is None:
            raise NotFound(f"the predictor has heard nothing of a workflow {workflow!r}")
        return found

    def subscribe(self, name: str, placed_only: bool = False) -> Subscription:
        """A new subscription; its first batch is a snapshot.

        Args:
            name: of the subscriber: a worker's id, or any name for the log.
            placed_only: only forecasts of workflows that have had a step placed on that worker.

        Raises:
            ResourceExhausted: there are too many.
            Unavailable: the service has failed or stopped.
        """
        self._check_running()
        return self._broadcaster.subscribe(name, placed_only)

    def flush(self) -> int:
        """Drops silent workflows, and broadcasts the forecasts of those that have changed. Returns how many were made."""
        self._forget(self._workflows.drop_silent())
        made = self._broadcaster.flush()
        self.forecasts_made += made
        return made

    async def run(self) -> None:
        """Broadcasts until cancelled: at once after a quiet time, else once in each broadcast interval. Learns in between."""
        sweep_s = min(1.0, self._lease_s / 4)
        loop = asyncio.get_running_loop()
        due = self._broadcaster.due
        while True:
            try:
                async with asyncio.timeout(sweep_s):
                    await due.wait()
            except TimeoutError:
                pass  # time to look for silent workflows
            due.clear()
            self.flush()
            next_s = loop.time() + self._config.broadcast_interval_s
            while self.predictor.learn_some() and (not due.is_set() or loop.time() < next_s):  # noqa: ASYNC110  # nothing to wait for
                await asyncio.sleep(0)  # events come first
            await asyncio.sleep(next_s - loop.time())

    def close(self, reason: str) -> None:
        """Ends every subscription and refuses calls from now on, giving `reason`."""
        self._failure = reason
        self._broadcaster.close(reason)

    def _take(self, event: WorkflowEvent) -> EventOutcome:
        outcome = self._workflows.judge(event)
        if outcome is EventOutcome.REOPENED:
            self.predictor.forget(event.workflow)
        if outcome.accepted:
            self.predictor.observe(event)
            workers, changed = self._workflows.record(event, outcome)
            if changed:
                self._broadcaster.add(event.workflow, workers)
        return outcome

    def _forget(self, silent: Collection[str]) -> None:
        # They are not remembered as ended: with its next event a workflow is back where it is then. Nor do subscribers hear of
        # an end, which only the gateway knows: the last forecast counts for the step that it was made after.
        for name in silent:
            self.predictor.forget(name)
            self._broadcaster.discard(name)

    def _forecast(self, workflows: Collection[str]) -> Forecasts:
        self._epoch += 1
        made_at = self._clock.wall()
        alive = [name for name in workflows if name in self._workflows]
        forecasts = self.predictor.forecast(alive, self._epoch, made_at)
        if len(alive) == len(workflows):
            return forecasts
        ended = [Forecast(name, self._epoch, made_at, (), ended=True) for name in workflows if name not in self._workflows]
        return Forecasts.joined([forecasts, Forecasts.of(ended)])

    def _check_running(self) -> None:
        if self._failure:
            raise Unavailable(self._failure)
