"""Finds the worker for a step: asks the index's mirror what is cached where, and waits while no worker is reachable."""

import asyncio
from collections.abc import Collection, Sequence
from typing import NamedTuple

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.prompt_keys import PromptKeys
from pbkv_cluster.gateway.routing.router import CachedTokens, Costs, KnownContexts, candidates, choose, choose_blind
from pbkv_cluster.gateway.routing.speeds import PrefillSpeed
from pbkv_cluster.gateway.routing.worker import Worker
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.store.block_map import Match, WorkerKey
from pbkv_cluster.store.cluster_index import IndexMirror


class Placed(NamedTuple):
    """The choice for a step."""

    worker: Worker
    cached_tokens: int  # of its prompt, that it need not compute there


class Placement:
    """Chooses among the live workers."""

    def __init__(
        self,
        pool: WorkerPool,
        mirror: IndexMirror,
        speed: PrefillSpeed,
        contexts: Contexts,
        decisions: Decisions,
        *,
        parallelism: int,
        worker_wait_s: float,
    ) -> None:
        """Args:
        parallelism: steps that a worker runs at once.
        worker_wait_s: seconds that a step waits for a first worker.
        """
        self._pool = pool
        self._mirror = mirror
        self._speed = speed
        self._contexts = contexts
        self._decisions = decisions
        self._parallelism = parallelism
        self._worker_wait_s = worker_wait_s

    async def wait(self, avoid: Collection[WorkerKey], cancelled: asyncio.Event) -> list[Worker]:
        """The workers that a step can go to; waits for one at most `worker_wait_s` seconds.

        A worker in `avoid` is returned only if there is no other: since it is live, it has recovered.

        Returns:
            At least one worker, or none if `cancelled` was set in the meantime.

        Raises:
            Unavailable: there was no worker in time.
        """
        if not self._pool.live():
            self._decisions[Reason.WORKER_WAIT] += 1
            self._pool.poll_soon()
            try:
                async with asyncio.timeout(self._worker_wait_s):
                    while not self._pool.live() and not cancelled.is_set():
                        await _first(self._pool.changed(), cancelled)
            except TimeoutError:
                raise Unavailable(f"no worker was reachable for {self._worker_wait_s:g} s") from None
        live = self._pool.live()
        return [worker for worker in live if worker.key not in avoid] or live

    async def choose(
        self,
        workers: Sequence[Worker],
        prompt: PromptKeys,
        last: WorkerKey | None = None,
        workflow: str = "",
        agent: str = "",
        counted: bool = True,
    ) -> Placed:
        """The worker where a step should finish first.

        Args:
            workers: at least one.
            prompt: the keys of its blocks.
            last: the worker that ran the workflow's latest step; None: there is none.
            workflow: id of the workflow, for where its contexts lie; empty: unknown.
            agent: that calls.
            counted: among the decisions; a step goes there.
        """
        keys = [prompt.of(worker.namespace) for worker in workers]
        known = await self._match(workers, keys)
        matches = known or [Match(0, 0)] * len(workers)
        by_worker = dict(zip((worker.key for worker in workers), keys, strict=True))
        contexts = self._contexts.known(workflow, agent, by_worker) if len(workers) > 1 else KnownContexts()
        cached = [_cached_tokens(match, worker) for match, worker in zip(matches, workers, strict=True)]
        found = candidates(workers, cached, keys, contexts, last)
        if known is None:
            choice = choose_blind(found)
        else:
            choice = choose(found, Costs(self._speed.seconds_per_token, self._parallelism))
        self._decisions[choice.reason] += counted
        at = [worker.id for worker in workers].index(choice.worker_id)
        return Placed(workers[at], found[at].cached_tokens)

    async def _match(self, workers: Sequence[Worker], keys: Sequence[Sequence[bytes]]) -> list[Match] | None:
        """What each worker has cached of the prompt, whose keys on each are given; None while the index is away."""
        if len(workers) == 1:
            return [Match(0, 0)]
        # No step waits for Redis to time out: not while the mirror waits for it, nor while the pool finds it away at the start.
        if self._mirror.has_lost_redis or not (self._mirror.is_current or self._pool.index_reachable):
            return None
        found: dict[WorkerKey, Match] = {}
        try:
            for namespace in dict.fromkeys(worker.namespace for worker in workers):
                alike = [number for number, worker in enumerate(workers) if worker.namespace == namespace]
                theirs = [workers[number].key for number in alike]
                found |= zip(theirs, await self._mirror.match(keys[alike[0]], theirs), strict=True)
        except Unavailable:
            self._pool.index_lost()
            return None
        return [found[worker.key] for worker in workers]


def _cached_tokens(match: Match, worker: Worker) -> CachedTokens:
    sibling = match.sibling_blocks if worker.entry.reads_siblings else 0
    remote = max(match.remote_blocks - sibling, 0) if worker.entry.reads_peers else 0
    host = match.blocks - match.gpu_blocks - match.disk_blocks
    blocks = match.gpu_blocks, host, match.disk_blocks, sibling, remote
    return CachedTokens(*(each * BLOCK_TOKENS for each in blocks))


async def _first(*events: asyncio.Event) -> None:
    """Waits until one of the events is set."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
