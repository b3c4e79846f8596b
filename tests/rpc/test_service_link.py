"""A link finds its service, keeps its exchange going and tells its state: real servers, which are killed and moved."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.errors import FailedPrecondition, Unavailable
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.service_link import Backoff, LinkState, Phase, ServiceLink, Verdict
from pbkv_cluster.rpc.services import FixedServices
from tests.polling import eventually

NAME = "oracle"
PATIENCE_S = 20.0
QUICK = Backoff(first_s=0.01, most_s=0.02)


class Directory:
    """Returns what the test sets."""

    def __init__(self) -> None:
        self.address: str | None = None
        self.error: Unavailable | None = None
        self.lookups = 0

    async def service_address(self, name: str) -> str | None:
        assert name == NAME
        self.lookups += 1
        if self.error is not None:
            raise self.error
        return self.address


@asynccontextmanager
async def server() -> AsyncIterator[RpcServer]:
    running = RpcServer()
    await running.start("127.0.0.1", 0)
    try:
        yield running
    finally:
        await running.stop(0)


class Rig:
    """A link whose exchange watches the service's health for as long as it lasts."""

    def __init__(self, lookup_interval_s: float = 60.0) -> None:
        self.directory = Directory()
        self.answers = list[str]()  # addresses, once for each exchange that heard from its service
        self.cancelled = 0
        self.link = ServiceLink(
            self.directory, NAME, self.watch, purpose="test", backoff=QUICK, lookup_interval_s=lookup_interval_s
        )
        self.verdict = Verdict.LOST

    async def watch(self, channel: aio.Channel) -> Verdict:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its stubs leave out Watch
            async for _ in stub.Watch(health_pb2.HealthCheckRequest()):
                self.link.connected()
                self.answers.append(self.link.state.address)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.verdict

    async def connected_to(self, address: str) -> None:
        async def holds() -> bool:
            return self.link.state == LinkState(Phase.CONNECTED, address)

        await eventually(holds, PATIENCE_S, lambda: f"{self.link.state}")

    async def state(self, holds: Callable[[LinkState], bool]) -> None:
        async def check() -> bool:
            return holds(self.link.state)

        await eventually(check, PATIENCE_S, lambda: f"{self.link.state}")


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    background = Background()
    background.start(rig.link.run(), "link")
    try:
        yield rig
    finally:
        await background.stop()


async def test_it_waits_for_its_service_and_follows_a_restart_at_another_address() -> None:
    async with running(Rig()) as rig:
        await rig.state(lambda state: state == LinkState(Phase.SEARCHING, "", "no oracle is announced"))
        for _ in range(3):
            async with server() as service:
                rig.directory.address = service.address
                await rig.connected_to(service.address)
            await rig.state(lambda state: state.phase is not Phase.CONNECTED)
    assert rig.link.state.phase is Phase.STOPPED
    assert len(rig.answers) >= 3


async def test_it_leaves_a_live_server_when_another_address_is_announced() -> None:
    async with server() as first, server() as second, running(Rig(lookup_interval_s=0.02)) as rig:
        rig.directory.address = first.address
        await rig.connected_to(first.address)
        rig.directory.address = second.address
        await rig.connected_to(second.address)
        assert rig.answers == [first.address, second.address]
        assert rig.cancelled == 1


async def test_an_exchange_survives_a_silent_or_empty_directory() -> None:
    async with server() as service, running(Rig(lookup_interval_s=0.01)) as rig:
        rig.directory.address = service.address
        await rig.connected_to(service.address)
        for error, address in ((Unavailable("Redis is away"), service.address), (None, None)):
            rig.directory.error, rig.directory.address = error, address
            looked = rig.directory.lookups

            async def looked_again(looked: int = looked) -> bool:
                return rig.directory.lookups > looked + 3

            await eventually(looked_again, PATIENCE_S)
            assert rig.link.is_connected
    assert rig.answers == [service.address]


async def test_its_state_says_why_it_is_not_connected(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Rig()) as rig:
        rig.directory.error = Unavailable("Redis is away")
        await rig.state(lambda state: state.problem == "Redis is away")
        rig.directory.error, rig.directory.address = None, "127.0.0.1:1"
        await rig.state(lambda state: "Connection refused" in state.problem)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING], "nothing was lost yet"
        async with server() as service:
            rig.directory.address = service.address
            await rig.connected_to(service.address)
        await rig.state(lambda state: state.phase is not Phase.CONNECTED)
    assert caplog.text.count(f"test: lost the oracle at {service.address}") == 1, "once, however often it is tried again"


async def run_with(exchange: Callable[[ServiceLink], Awaitable[Verdict]], *, must_connect: bool = False) -> ServiceLink:
    """Runs a link with an exchange that makes no calls, so that nothing needs to listen at its address."""
    link: ServiceLink

    async def run(_: aio.Channel) -> Verdict:
        return await exchange(link)

    link = ServiceLink(FixedServices({NAME: "127.0.0.1:1"}), NAME, run, purpose="test", backoff=QUICK)
    async with asyncio.timeout(PATIENCE_S):
        await link.run(must_connect=must_connect)
    return link


async def test_done_ends_the_link_and_again_keeps_it_connected() -> None:
    verdicts = [Verdict.AGAIN, Verdict.AGAIN, Verdict.DONE]
    seen = list[bool]()

    async def exchange(link: ServiceLink) -> Verdict:
        seen.append(link.is_connected)
        link.connected()
        return verdicts[len(seen) - 1]

    link = await run_with(exchange)
    assert seen == [False, True, True]
    assert link.state.phase is Phase.STOPPED


async def test_a_defect_of_the_exchange_ends_the_link() -> None:
    async def exchange(link: ServiceLink) -> Verdict:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_with(exchange)


async def test_a_lost_exchange_is_tried_again() -> None:
    attempts = 0

    async def exchange(link: ServiceLink) -> Verdict:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise asyncio.CancelledError
        if attempts == 2:
            raise FailedPrecondition("not yet")
        return Verdict.DONE

    await run_with(exchange)
    assert attempts == 3


async def test_a_link_that_must_connect_raises_only_until_it_has_connected() -> None:
    async def refused(link: ServiceLink) -> Verdict:
        raise FailedPrecondition("no")

    with pytest.raises(FailedPrecondition, match="no"):
        await run_with(refused, must_connect=True)
    attempts = 0

    async def loses(link: ServiceLink) -> Verdict:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            link.connected()
        return Verdict.LOST if attempts < 4 else Verdict.DONE

    await run_with(loses, must_connect=True)
    assert attempts == 4


async def test_finishing_makes_the_next_attempt_the_last() -> None:
    rig = Rig()
    slow = Backoff(first_s=60.0, most_s=60.0)
    rig.link = ServiceLink(rig.directory, NAME, rig.watch, purpose="test", backoff=slow)
    assert await rig.link.finish(0.0), "it does not run"
    rig.link = ServiceLink(rig.directory, NAME, rig.watch, purpose="test", backoff=slow)
    task = asyncio.create_task(rig.link.run())
    await rig.state(lambda state: state.problem != "")
    assert await rig.link.finish(PATIENCE_S), "no pause is waited for"
    await task
    assert rig.directory.lookups == 2


async def test_finishing_gives_up_on_an_exchange_that_does_not_end() -> None:
    async with server() as service, running(Rig()) as rig:
        rig.directory.address = service.address
        await rig.connected_to(service.address)
        assert not await rig.link.finish(0.05)


@dataclass(frozen=True)
class RecordingBackoff(Backoff):
    """Notes what it is asked; does not pause."""

    failures: list[int] = field(default_factory=list)

    def pause_s(self, failures: int) -> float:
        self.failures.append(failures)
        return 0.0


@pytest.mark.parametrize(("most_s", "expected"), [(60.0, [1, 2, 3]), (0.0, [1, 1, 1])], ids=["short", "long"])
async def test_pauses_grow_unless_the_connection_has_lasted(most_s: float, expected: list[int]) -> None:
    attempts = 0

    async def exchange(_: aio.Channel) -> Verdict:
        nonlocal attempts
        attempts += 1
        link.connected()
        return Verdict.LOST if attempts < 4 else Verdict.DONE

    backoff = RecordingBackoff(first_s=0.0, most_s=most_s)
    link = ServiceLink(FixedServices({NAME: "127.0.0.1:1"}), NAME, exchange, purpose="test", backoff=backoff)
    await link.run()
    assert backoff.failures == expected


def test_pauses_grow_to_a_bound_and_differ() -> None:
    backoff = Backoff(first_s=0.1, most_s=1.0)
    for failures, longest in ((1, 0.1), (2, 0.2), (4, 0.8), (5, 1.0), (10_000, 1.0)):
        pauses = {backoff.pause_s(failures) for _ in range(50)}
        assert len(pauses) > 1
        assert all(longest / 2 <= pause <= longest for pause in pauses)


async def test_a_status_is_raised_as_the_error_of_its_class() -> None:
    async def exchange(link: ServiceLink) -> Verdict:
        raise aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, aio.Metadata(), aio.Metadata(), "full")

    with pytest.raises(Exception, match="full") as raised:
        await run_with(exchange, must_connect=True)
    assert type(raised.value).__name__ == "ResourceExhausted"
