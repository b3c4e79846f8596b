"""Reason codes of what the gateway decides; `GetClusterStatus.decisions` shows how often each was taken."""

from collections import Counter
from enum import StrEnum


class Reason(StrEnum):
    """One kind of decision."""

    ROUTE_PREFIX = "route_prefix"  # the longest cached prefix won
    ROUTE_QUEUE = "route_queue"  # a longer prefix lay elsewhere, behind too long a queue
    ROUTE_AFFINITY = "route_affinity"  # nothing cached: the worker that served the workflow last
    ROUTE_LEAST_LOADED = "route_least_loaded"  # nothing cached, nothing served before
    ROUTE_ONLY_WORKER = "route_only_worker"  # there was no choice
    ROUTE_BLIND_AFFINITY = "route_blind_affinity"  # the index is away: the worker that served the workflow last
    ROUTE_BLIND_LEAST_LOADED = "route_blind_least_loaded"  # the index is away
    WORKER_WAIT = "worker_wait"  # a step had to wait because no worker was reachable
    WORKER_LOST = "worker_lost"  # a step lost its worker
    STEP_RETRIED = "step_retried"
    STEP_CANCELLED = "step_cancelled"  # by its client or by the end of its workflow
    WORKER_REFUSED = "worker_refused"  # a worker's queue was full
    STEP_REFUSED = "step_refused"  # too many steps in flight
    WORKFLOW_REFUSED = "workflow_refused"  # too many open workflows
    WORKFLOW_RESUMED = "workflow_resumed"  # found in the directory after a restart
    WORKFLOW_LEASE_EXPIRED = "workflow_lease_expired"
    RETIRE_FAILED = "retire_failed"  # a worker could not be told that a workflow is over
    RECORD_DEFERRED = "record_deferred"  # the directory is away: a workflow's record waits
    RECORD_DROPPED = "record_dropped"  # too many wait; the oldest was given up
    EVENT_DROPPED = "event_dropped"  # the predictor refused it, or is away and its queue full: the oldest event was given up


Decisions = Counter[str]
