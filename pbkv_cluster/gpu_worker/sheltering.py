"""How workers of one node ask each other to shelter blocks. Which, and whether they do, `cache/prefetch/shelter.py` says."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from grpc import aio

from pbkv_cluster.cache.prefetch.shelter import LeavingPath
from pbkv_cluster.core.background import Background
from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.errors import InvalidArgument, Unavailable
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.kv.other_workers import OtherWorkers
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import packed_from_wire
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

Siblings = Callable[[], Awaitable[Sequence[str]]]
"""Returns the addresses of the other workers of this node that read each other's host memory. May raise Unavailable."""

_LOOK_S = 0.2  # between two looks at what is about to leave
_FULL_S = 2.0  # for which a sibling is left alone that took nothing, or did not answer
_TIMEOUT_S = 5.0
_MOST_BYTES = 1 << 20  # of tokens, each time


class ShelterSeeker:
    """Finds shelter for what is about to leave this worker's host memory, on a task of the running event loop."""

    def __init__(self, thread: EngineThread, others: OtherWorkers, siblings: Siblings) -> None:
        """Args:
        thread: the engine's.
        others: told of what is sheltered.
        siblings: finds them.
        """
        self._thread = thread
        self._others = others
        self._siblings = siblings
        self._full_until: dict[str, float] = {}  # by address
        self._background = Background()

    def start(self) -> None:
        self._background.start(self._run(), "shelter")

    async def wait(self) -> None:
        """Runs until it fails, then raises its error."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._look()
            except Unavailable as error:  # the directory; or the engine has ended, which is told elsewhere
                log.debug("no shelter is sought: %s", error)
                await asyncio.sleep(_FULL_S)

    async def _look(self) -> None:
        paths = await self._thread.call(lambda engine: engine.cache.shelter.leaving(_MOST_BYTES))
        if not paths:
            return
        for address in await self._siblings():
            if self._full_until.get(address, 0.0) <= time.monotonic():
                if await self._ask(address, paths):
                    return
                self._full_until[address] = time.monotonic() + _FULL_S
        await asyncio.sleep(_FULL_S)

    async def _ask(self, address: str, paths: Sequence[LeavingPath]) -> int:
        """Returns the blocks that the sibling takes."""
        request = worker_pb2.ShelterRequest(
            paths=[
                worker_pb2.ShelterRequest.Path(namespace_digest=path.digest, tokens=types_pb2.PackedTokens(data=path.tokens))
                for path in paths
            ]
        )
        self._others.sheltered(key for path in paths for key in path.keys)  # first: it may be told of them before it answers
        async with connect(address) as channel:
            try:
                response = await worker_pb2_grpc.WorkerServiceStub(channel).Shelter(request, timeout=_TIMEOUT_S)
            except aio.AioRpcError as error:
                cause = from_rpc(error)
                log.log(
                    logging.DEBUG if isinstance(cause, Unavailable) else logging.WARNING,
                    "the worker at %s shelters nothing: %s",
                    address,
                    cause,
                )
                return 0
        return response.blocks


async def take_in(thread: EngineThread, request: worker_pb2.ShelterRequest) -> worker_pb2.ShelterResponse:
    """Shelters what a sibling has asked for.

    Raises:
        InvalidArgument: a path is not one.
        Unavailable: the engine has ended.
    """
    paths = []
    for number, path in enumerate(request.paths):
        if len(path.namespace_digest) != KEY_BYTES:
            raise InvalidArgument(f"paths[{number}].namespace_digest", f"must be {KEY_BYTES} bytes")
        tokens = packed_from_wire(path.tokens, f"paths[{number}].tokens")
        if not tokens or len(tokens) % BLOCK_BYTES:
            raise InvalidArgument(f"paths[{number}].tokens", "must be whole blocks")
        paths.append((path.namespace_digest, tokens))

    taken = await thread.call(lambda engine: sum(engine.cache.shelter.take_in(digest, tokens) for digest, tokens in paths))
    return worker_pb2.ShelterResponse(blocks=taken)
