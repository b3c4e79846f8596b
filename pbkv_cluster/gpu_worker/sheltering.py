"""How workers of one node ask each other to shelter blocks. Which, and whether they do, `cache/prefetch/shelter.py` says."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from grpc import aio

from pbkv_cluster.cache.prefetch.shelter import PATHS_BYTES, LeavingPath, ShelterState
from pbkv_cluster.core.background import Background
from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.errors import DeadlineExceeded, InvalidArgument, PbkvError, Unavailable
from pbkv_cluster.core.tokens import BLOCK_BYTES
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.convert import packed_from_wire
from pbkv_cluster.rpc.errors import from_rpc
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

Siblings = Callable[[], Awaitable[Sequence[str]]]
"""Returns the addresses of the other workers of this node that read each other's host memory. May raise Unavailable."""

_LOOK_S = 0.2  # between two looks at what is about to leave
_COPYING_S = 0.02  # likewise while a sibling copies
_FULL_S = 2.0  # for which a sibling is left alone that has no room, or does not answer
_REFUSED_S = 30.0  # for which one is left alone that refuses, or all are if none can be reached
_TIMEOUT_S = 1.0

_PAUSES_S = {
    worker_pb2.ShelterResponse.STATE_FULL: _FULL_S,
    worker_pb2.ShelterResponse.STATE_HELD: _LOOK_S,
    worker_pb2.ShelterResponse.STATE_COPYING: _COPYING_S,
}
_STATES = {
    ShelterState.FULL: worker_pb2.ShelterResponse.STATE_FULL,
    ShelterState.HELD: worker_pb2.ShelterResponse.STATE_HELD,
    ShelterState.COPYING: worker_pb2.ShelterResponse.STATE_COPYING,
}


class ShelterSeeker:
    """Finds shelter for what is about to leave this worker's host memory, on a task of the running event loop."""

    def __init__(self, thread: EngineThread, siblings: Siblings) -> None:
        """Args:
        thread: the engine's.
        siblings: finds them.
        """
        self._thread = thread
        self._siblings = siblings
        self._rests_until: dict[str, float] = {}  # by address
        self._found: tuple[float, Sequence[str]] = (0.0, ())  # until when it counts, and the siblings' addresses
        self._channels: dict[str, aio.Channel] = {}  # by address
        self._background = Background()

    def start(self) -> None:
        self._background.start(self._run(), "shelter")

    async def wait(self) -> None:
        """Runs until it fails, then raises its error."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()
        for channel in self._channels.values():
            await channel.close()

    async def _run(self) -> None:
        while True:
            try:
                pause_s = await self._look()
            except PbkvError as error:  # the directory does not answer; or the engine has ended, which it tells
                log.debug("no shelter is sought: %s", error)
                pause_s = _FULL_S
            except OSError as error:  # certificates cannot be read
                log.warning("no shelter is sought: %s", error)
                pause_s = _REFUSED_S
            await asyncio.sleep(pause_s)

    async def _look(self) -> float:
        """Returns the seconds until the next look."""
        paths = await self._thread.call(lambda engine: engine.cache.shelter.leaving())
        if not paths:
            return _LOOK_S
        pause_s = _FULL_S
        for address in await self._addresses():
            if self._rests_until.get(address, 0.0) > time.monotonic():
                continue
            try:
                response = await _ask(self._channels[address], paths)
            except (Unavailable, DeadlineExceeded) as error:  # it has gone, or its batches take long
                log.debug("the worker at %s shelters nothing: %s", address, error)
                self._rests_until[address] = time.monotonic() + _FULL_S
            except PbkvError as error:
                log.warning("the worker at %s shelters nothing: %s", address, error)
                self._rests_until[address] = time.monotonic() + _REFUSED_S
            else:
                if response.blocks:
                    return _COPYING_S
                pause_s = min(pause_s, _PAUSES_S[response.state])
                if response.state == worker_pb2.ShelterResponse.STATE_FULL:
                    self._rests_until[address] = time.monotonic() + _FULL_S
        return pause_s

    async def _addresses(self) -> Sequence[str]:
        """Of the siblings, as they were a moment ago; each has a channel."""
        until, addresses = self._found
        if until <= time.monotonic():
            addresses = await self._siblings()
            self._found = time.monotonic() + _FULL_S, addresses
            for address in [each for each in self._channels if each not in addresses]:
                await self._channels.pop(address).close()
                self._rests_until.pop(address, None)
            for address in addresses:
                if address not in self._channels:
                    self._channels[address] = connect(address)
        return addresses


async def _ask(channel: aio.Channel, paths: Sequence[LeavingPath]) -> worker_pb2.ShelterResponse:
    """Raises:
    PbkvError: the sibling does not answer, or refuses.
    """
    wire = worker_pb2.ShelterRequest.Path
    request = worker_pb2.ShelterRequest(
        paths=[
            wire(namespace_digest=digest, tokens=types_pb2.PackedTokens(data=tokens), first_block=first)
            for digest, tokens, first in paths
        ]
    )
    try:
        return await worker_pb2_grpc.WorkerServiceStub(channel).Shelter(request, timeout=_TIMEOUT_S)
    except aio.AioRpcError as error:
        raise from_rpc(error) from error


async def take_in(thread: EngineThread, request: worker_pb2.ShelterRequest) -> worker_pb2.ShelterResponse:
    """Shelters what a sibling has asked for.

    Raises:
        InvalidArgument: a path is not one, or they have too many tokens.
        Unavailable: the engine has ended.
    """
    paths = [_path(path, f"paths[{number}]") for number, path in enumerate(request.paths)]
    if (size := sum(len(path.tokens) for path in paths)) > PATHS_BYTES:
        raise InvalidArgument("paths", f"{size} bytes of tokens are more than {PATHS_BYTES}")

    taken = await thread.call(lambda engine: engine.cache.shelter.take_in(paths))
    return worker_pb2.ShelterResponse(blocks=taken.blocks, state=_STATES[taken.state])


def _path(path: worker_pb2.ShelterRequest.Path, field: str) -> LeavingPath:
    if len(path.namespace_digest) != KEY_BYTES:
        raise InvalidArgument(f"{field}.namespace_digest", f"must be {KEY_BYTES} bytes")
    tokens = packed_from_wire(path.tokens, f"{field}.tokens")
    if not tokens or len(tokens) % BLOCK_BYTES:
        raise InvalidArgument(f"{field}.tokens", "must be whole blocks")
    if path.first_block < 0:
        raise InvalidArgument(f"{field}.first_block", "must not be negative")
    return LeavingPath(path.namespace_digest, tokens, path.first_block)
