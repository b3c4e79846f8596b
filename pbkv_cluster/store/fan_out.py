"""`StoreService` for several workers: each call is made to all of them at once, and the answers are put together."""

import asyncio
import heapq
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableSequence, Sequence
from typing import Any, TypeVar

from grpc import aio

from pbkv_cluster.core.errors import FailedPrecondition, PbkvError, Unavailable
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, types_pb2

log = logging.getLogger(__name__)

T = TypeVar("T")
# Only type checkers see the class of the stub.
Call = Callable[["store_pb2_grpc.StoreServiceAsyncStub"], Awaitable[T]]

_LIMIT = 20  # entries of a list, where the request has no limit
_MAX_LIMIT = 1000  # that a worker returns
_NAMES = 16  # workflows and agents that an entry names, at most
_ERRORS = 4  # of workers, that an error tells
_CHECK_TIMEOUT_S = 3600.0  # reads all of a worker's host memory and disk


class WorkersServicer(store_pb2_grpc.StoreServiceServicer, ABC):
    """Passes calls on to workers. A worker or a directory that does not answer makes a call UNAVAILABLE; one of leases, only if
    no worker answers.

    A call that one worker cannot serve fails after all others have served it; its error names that worker and how many have.
    Workers whose engine has no such call are left out where others have it: of prefetches, leases, lists and explanations.
    """

    def __init__(self, worker_timeout_s: float) -> None:
        """`worker_timeout_s` is how many seconds a worker may take."""
        self._worker_timeout_s = worker_timeout_s

    @abstractmethod
    async def worker_addresses(self) -> Sequence[str]:
        """The workers that calls go to, host:port.

        Raises:
            Unavailable: they cannot be found out now.
        """

    async def Stat(self, request: store_pb2.StatRequest, context: Any) -> store_pb2.StatResponse:  # noqa: N802
        answers = await self._call_workers(lambda stub: stub.Stat(request))
        return store_pb2.StatResponse(store=_sum([answer.store for answer in answers]))

    async def Prefetch(self, request: store_pb2.PrefetchRequest, context: Any) -> store_pb2.PrefetchResponse:  # noqa: N802
        answers = await self._call_able(lambda stub: stub.Prefetch(request))
        most = max(answers, key=lambda answer: answer.resident_tokens, default=store_pb2.PrefetchResponse())
        total = store_pb2.PrefetchResponse()
        total.CopyFrom(most)  # where most of it is; several workers may have the same blocks
        total.loaded_tokens = sum(answer.loaded_tokens for answer in answers)
        total.staged_tokens = sum(answer.staged_tokens for answer in answers)
        return total

    async def LeaseBlocks(  # noqa: N802
        self, request: store_pb2.LeaseBlocksRequest, context: Any
    ) -> store_pb2.LeaseBlocksResponse:
        answers = await self._call_reachable(lambda stub: stub.LeaseBlocks(request))
        return store_pb2.LeaseBlocksResponse(
            cached_tokens=max((answer.cached_tokens for answer in answers), default=0),
            leased_tokens=max((answer.leased_tokens for answer in answers), default=0),
        )

    async def ReleaseBlocks(  # noqa: N802
        self, request: store_pb2.ReleaseBlocksRequest, context: Any
    ) -> store_pb2.ReleaseBlocksResponse:
        answers = await self._call_reachable(lambda stub: stub.ReleaseBlocks(request))
        return store_pb2.ReleaseBlocksResponse(released_tokens=max((answer.released_tokens for answer in answers), default=0))

    async def Clear(self, request: store_pb2.ClearRequest, context: Any) -> store_pb2.ClearResponse:  # noqa: N802
        answers = await self._call_workers(lambda stub: stub.Clear(request))
        return store_pb2.ClearResponse(dropped_blocks=sum(answer.dropped_blocks for answer in answers))

    async def ListCache(  # noqa: N802
        self, request: store_pb2.ListCacheRequest, context: Any
    ) -> store_pb2.ListCacheResponse:
        summed = request.by in (store_pb2.CACHE_GROUPING_WORKFLOW, store_pb2.CACHE_GROUPING_AGENT)
        asked = store_pb2.ListCacheRequest()
        asked.CopyFrom(request)
        if summed:  # what is first in the sum need not be among the first of each worker
            asked.limit = max(request.limit, _MAX_LIMIT)
        answers = await self._call_able(lambda stub: stub.ListCache(asked))
        entries: Iterable[store_pb2.CachedBlocks] = (entry for answer in answers for entry in answer.entries)
        if summed:
            entries = _by_name(entries)
        hottest = request.order == store_pb2.CACHE_ORDER_HOTTEST
        first = heapq.nlargest(
            request.limit or _LIMIT, entries, key=lambda entry: entry.recent_uses if hottest else float(entry.tokens)
        )
        found = store_pb2.ListCacheResponse(entries=first)
        for answer in answers:
            _add_tiers(found.shared, answer.shared)
        return found

    async def ExplainCache(  # noqa: N802
        self, request: store_pb2.ExplainCacheRequest, context: Any
    ) -> store_pb2.ExplainCacheResponse:
        answers = await self._call_able(lambda stub: stub.ExplainCache(request))
        keys = list(dict.fromkeys(key for answer in answers for key in answer.keys))
        if len(keys) > 1:  # each worker may know another block whose key begins so
            return store_pb2.ExplainCacheResponse(keys=keys[:_NAMES])
        decisions = heapq.nsmallest(
            request.limit or _LIMIT, (each for answer in answers for each in answer.decisions), key=lambda each: each.age_s
        )
        blocks = [block for answer in answers for block in answer.blocks]
        return store_pb2.ExplainCacheResponse(keys=keys, blocks=blocks, decisions=decisions)

    async def CheckCache(  # noqa: N802
        self, request: store_pb2.CheckCacheRequest, context: Any
    ) -> store_pb2.CheckCacheResponse:
        answers = await self._call_workers(lambda stub: stub.CheckCache(request), _CHECK_TIMEOUT_S)
        return store_pb2.CheckCacheResponse(
            checked_blocks=sum(answer.checked_blocks for answer in answers),
            changed_blocks=sum(answer.changed_blocks for answer in answers),
            damaged_blocks=sum(answer.damaged_blocks for answer in answers),
            damaged=[key for answer in answers for key in answer.damaged],
        )

    async def _call_workers(self, call: Call[T], timeout_s: float | None = None) -> list[T]:
        found = await self._ask_all(call, timeout_s or self._worker_timeout_s)
        if failures := {address: each for address, each in found.items() if isinstance(each, BaseException)}:
            raise _failure(failures, len(found))
        return [each for each in found.values() if not isinstance(each, BaseException)]

    async def _call_able(self, call: Call[T]) -> list[T]:
        """The answers of those whose engine has such a call.

        Raises:
            PbkvError: no engine has it, or another one has failed.
        """
        found = await self._ask_all(call, self._worker_timeout_s)
        able = {address: each for address, each in found.items() if not isinstance(each, FailedPrecondition)} or found
        if failures := {address: each for address, each in able.items() if isinstance(each, BaseException)}:
            raise _failure(failures, len(able))
        return [each for each in able.values() if not isinstance(each, BaseException)]

    async def _call_reachable(self, call: Call[T]) -> list[T]:
        """The answers of those that do not fail: what a lost worker has cached is lost, and no lease of it.

        Raises:
            PbkvError: all fail.
        """
        answers: list[T] = []
        errors: list[BaseException] = []
        for address, answer in (await self._ask_all(call, self._worker_timeout_s)).items():
            if isinstance(answer, BaseException):
                level = logging.DEBUG if isinstance(answer, FailedPrecondition) else logging.WARNING
                log.log(level, "the worker at %s is left out of a lease: %s", address, answer)
                errors.append(answer)
            else:
                answers.append(answer)
        if errors and not answers:
            raise errors[0]
        return answers

    async def _ask_all(self, call: Call[T], timeout_s: float) -> dict[str, T | BaseException]:
        """What each worker answers, or why it does not, by its address."""
        addresses = sorted(await self.worker_addresses())
        calls = (call_worker(address, call, timeout_s) for address in addresses)
        return dict(zip(addresses, await asyncio.gather(*calls, return_exceptions=True), strict=True))


async def call_worker(address: str, call: Call[T], timeout_s: float) -> T:
    """The answer of one worker.

    Raises:
        Unavailable: it is not reachable, or does not answer in time.
        PbkvError: it has refused the call.
    """
    async with connect(address) as channel:
        try:
            async with asyncio.timeout(timeout_s):
                return await call(store_pb2_grpc.StoreServiceStub(channel))
        except aio.AioRpcError as error:
            cause = from_rpc(error)
            if isinstance(cause, Unavailable):
                raise Unavailable(f"the worker at {address} cannot be asked: {cause}") from error
            raise cause from error
        except TimeoutError as error:
            raise Unavailable(f"the worker at {address} does not answer") from error


def _failure(failures: dict[str, BaseException], workers: int) -> BaseException:
    """The error of a call that some of the workers could not serve: that of the first who refuses it, if any does."""
    error = min(failures.values(), key=lambda each: isinstance(each, Unavailable))
    if not isinstance(error, PbkvError):
        return error
    texts = {str(each) for each in failures.values()}
    if len(failures) == workers and len(texts) == 1:  # what one says, all say
        return error
    told = sorted(failures.items(), key=lambda each: each[1] is not error)
    named = [_named(address, each) for address, each in told[:_ERRORS]]
    more = [f"{len(failures) - len(named)} others have failed, too"] if len(failures) > len(named) else []
    done = f"{workers - len(failures)} of {workers} workers have done what was asked"
    error.args = ("; ".join([*named, *more, done]),)
    return error


def _named(address: str, error: BaseException) -> str:
    return str(error) if address in str(error) else f"{error} (the worker at {address})"


def _sum(stats: list[store_pb2.StoreStat]) -> store_pb2.StoreStat:
    tiers: dict[int, store_pb2.TierStat] = {}
    decisions: Counter[str] = Counter()
    leases = store_pb2.LeaseStat()
    for stat in stats:
        decisions.update(stat.decisions)
        leases.leases += stat.leases.leases
        leases.leased_tokens += stat.leases.leased_tokens
        leases.limit_tokens += stat.leases.limit_tokens
        for tier in stat.tiers:
            total = tiers.setdefault(tier.tier, store_pb2.TierStat(tier=tier.tier))
            total.capacity_blocks += tier.capacity_blocks
            total.used_blocks += tier.used_blocks
            if tier.HasField("locked_blocks"):
                total.locked_blocks += tier.locked_blocks
            total.ready_blocks += tier.ready_blocks
            total.block_bytes = tier.block_bytes
    policies = sorted({stat.policy for stat in stats})
    return store_pb2.StoreStat(
        tiers=tiers.values(), policy=",".join(policies), decisions=decisions, leases=leases if stats else None
    )


def _by_name(entries: Iterable[store_pb2.CachedBlocks]) -> Iterable[store_pb2.CachedBlocks]:
    """One entry for each name: what is cached on several workers counts as often as it is cached."""
    sums: dict[str, store_pb2.CachedBlocks] = {}
    for entry in entries:
        total = sums.get(entry.name)
        if total is None:
            sums[entry.name] = entry
            continue
        total.worker_id = ""
        total.tokens += entry.tokens
        total.shared_tokens += entry.shared_tokens
        _add_tiers(total.tiers, entry.tiers)
        for names, more in ((total.workflows, entry.workflows), (total.agents, entry.agents)):
            names.extend([name for name in more if name not in names][: max(0, _NAMES - len(names))])
        total.in_use = total.in_use or entry.in_use
        total.idle_s = min(total.idle_s, entry.idle_s)
        total.recent_uses = max(total.recent_uses, entry.recent_uses)
        total.leased_s = max(total.leased_s, entry.leased_s)
    return sums.values()


def _add_tiers(total: MutableSequence[types_pb2.TierTokens], more: Iterable[types_pb2.TierTokens]) -> None:
    known = {each.tier: each for each in total}
    for each in more:
        if each.tier in known:
            known[each.tier].tokens += each.tokens
        else:
            total.append(each)
