"""Reason codes of the gateway's decisions; `GetClusterStatus.decisions` shows how often each was taken."""

from collections import Counter
from enum import StrEnum


class Reason(StrEnum):
    """One kind of decision."""

    ROUTE_PREFIX = "route_prefix"  # to the longest cached prefix
    ROUTE_SIBLING_PREFIX = "route_sibling_prefix"  # nothing cached there, but in host memory of its node, to be copied
    ROUTE_REMOTE_PREFIX = "route_remote_prefix"  # nothing cached on its node, but in host memory of another, to be copied
    ROUTE_PENDING_PREFIX = "route_pending_prefix"  # nothing cached: to the worker where another step computes the prefix now
    ROUTE_CONTEXT = "route_context"  # to the worker where other contexts of the workflow lie, which its next steps will read
    ROUTE_QUEUE = "route_queue"  # away from a longer cached prefix, whose worker has too long a queue
    ROUTE_PRESSURE = "route_pressure"  # away from a longer cached prefix, whose worker's memory other workflows need more
    ROUTE_AFFINITY = (
        "route_affinity"  # to the worker that served the workflow last, where little or nothing is cached elsewhere
    )
    ROUTE_LEAST_LOADED = "route_least_loaded"  # nothing cached: to the shortest queue, where most memory is left
    ROUTE_ONLY_WORKER = "route_only_worker"  # there was no choice
    ROUTE_BLIND_AFFINITY = "route_blind_affinity"  # the index is away: to the worker that served the workflow last
    ROUTE_BLIND_LEAST_LOADED = "route_blind_least_loaded"  # the index is away, and no worker has served the workflow
    WORKER_WAIT = "worker_wait"  # a step had to wait because no worker was reachable
    WORKER_LOST = "worker_lost"  # a step lost its worker
    STEP_RETRIED = "step_retried"  # it went to another worker
    STEP_DIRECT = "step_direct"  # its output went straight from the worker to its client
    STEP_CANCELLED = "step_cancelled"  # by its client or by the end of its workflow
    STEP_FAILED = "step_failed"  # its client got an error
    STEP_EXPIRED = "step_expired"  # its deadline passed
    WORKER_REFUSED = "worker_refused"  # a worker's queue was full
    STEP_REFUSED = "step_refused"  # too many steps in flight, or tokens queued: of all, of its tenant or of its workflow
    WORKFLOW_REFUSED = "workflow_refused"  # too many open workflows
    WORKFLOW_RESUMED = "workflow_resumed"  # taken over from a gateway that is gone, or from this one before a restart
    WORKFLOW_MOVED = "workflow_moved"  # another gateway has taken it over from this one
    CALL_PASSED_ON = "call_passed_on"  # to the gateway that holds the workflow
    STEP_RESUMED = "step_resumed"  # submitted again by its id, and run on from the output that there was
    STEP_JOINED = "step_joined"  # submitted again by its id: while it ran, or after its end, and not run again
    WORKFLOW_LEASE_EXPIRED = "workflow_lease_expired"
    RETIRE_FAILED = "retire_failed"  # a worker did not answer the call that ends a workflow
    TOOL_CALL_UNHEARD = "tool_call_unheard"  # a worker did not answer in time when it was told of a tool call
    STEP_UNHEARD = "step_unheard"  # a worker did not take what it was told of a workflow's steps elsewhere
    RECORD_DEFERRED = "record_deferred"  # the directory is away: a workflow's entry is written later
    RECORDS_REWRITTEN = "records_rewritten"  # the directory had lost entries: those of all open workflows were written again
    RECORD_DROPPED = "record_dropped"  # too many entries wait to be written; the oldest was dropped
    EVENT_DROPPED = "event_dropped"  # the predictor refused an event, or is away and the queue was full


Decisions = Counter[str]
