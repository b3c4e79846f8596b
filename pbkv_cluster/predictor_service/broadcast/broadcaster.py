"""Gives each subscriber the forecasts of the workflows that have changed."""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from pbkv_cluster.core.errors import ResourceExhausted
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.predictor_service.broadcast.subscription import Offer, Subscription
from pbkv_cluster.predictor_service.events.open_workflows import OpenWorkflows, Workers, may_be_on

log = logging.getLogger(__name__)

MAX_SUBSCRIBERS = 4096


class Broadcaster:
    """The subscriptions, and the workflows whose forecasts are due."""

    def __init__(self, queue: int, workflows: OpenWorkflows, forecast: Callable[[Collection[str]], Forecasts]) -> None:
        """Args:
        queue: forecasts that may wait for one subscriber.
        workflows: the open ones, for snapshots.
        forecast: makes forecasts of workflows.
        """
        self._queue = queue
        self._workflows = workflows
        self._forecast = forecast
        self._changed: dict[str, Workers] = {}  # workflows since the last broadcast, and the workers to tell
        self._subscriptions: dict[Subscription, None] = {}
        self.due = asyncio.Event()  # set by `wake`
        self.fell_behind = 0  # times that a subscriber has

    def __len__(self) -> int:
        """Open subscriptions."""
        return len(self._subscriptions)

    def add(self, workflow: str, workers: Workers) -> None:
        """A workflow has changed: its forecast is due to these workers."""
        self._changed[workflow] = workers

    def discard(self, workflow: str) -> None:
        """The workflow's forecast is not due any more."""
        self._changed.pop(workflow, None)

    def wake(self) -> None:
        """Sets `due` if any forecast is."""
        if self._changed:
            self.due.set()

    def subscribe(self, name: str, placed_only: bool) -> Subscription:
        """See `PredictorService.subscribe`."""
        if len(self._subscriptions) >= MAX_SUBSCRIBERS:
            raise ResourceExhausted(f"{MAX_SUBSCRIBERS} subscribers watch forecasts already")
        subscription = Subscription(
            name, self._queue, self._snapshot, lambda closed: self._subscriptions.pop(closed, None), placed_only
        )
        self._subscriptions[subscription] = None
        return subscription

    def flush(self) -> int:
        """Makes the forecasts that are due, in one batch, and offers them to the subscribers. Returns how many were made.

        Without subscribers none are made: a new one starts with a snapshot.
        """
        changed, self._changed = self._changed, {}
        if not changed or not self._subscriptions:
            return 0
        forecasts = self._forecast(changed)
        for subscription in self._subscriptions:
            wanted: Sequence[int] = range(len(forecasts))
            if subscription.placed_only:
                workers = enumerate(map(changed.__getitem__, forecasts.workflows))
                wanted = [at for at, each in workers if may_be_on(subscription.name, each)]
            if wanted and subscription.offer(forecasts, wanted) is Offer.FELL_BEHIND:
                self.fell_behind += 1
                log.warning("subscriber %r fell behind: it is sent a snapshot", subscription.name)
        return len(forecasts)

    def close(self, reason: str) -> None:
        """Ends every subscription with Unavailable, which gives the reason."""
        for subscription in list(self._subscriptions):
            subscription.close(reason)

    def _snapshot(self, subscription: Subscription) -> Forecasts:
        everything = not subscription.placed_only
        return self._forecast(list(self._workflows) if everything else self._workflows.on_worker(subscription.name))
