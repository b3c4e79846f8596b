"""Clients of asyncio in event loops that end with them, one after the other, as scripts and tests have them."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from pbkv_cluster.client import AsyncClient
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import running

LOOPS = 20


@pytest.fixture
def address() -> Iterator[str]:
    """A gateway's, whose event loop is on another thread."""
    told: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        async with running(ScriptedWorker("w0")) as rig:
            stop = asyncio.Event()
            told.set_result((rig.address, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    found, loop, stop = told.result(60.0)
    yield found
    loop.call_soon_threadsafe(stop.set)
    thread.join()


def test_a_client_leaves_nothing_for_its_event_loop_to_be_told_of(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """grpc.aio tells a loop that is closed in vain, and the process's other loops then miss what they wait for."""

    async def run() -> None:
        async with AsyncClient(address) as client, await client.start_workflow() as workflow:
            steps = [workflow.run(agent="a", prompt=[5] * 40, max_tokens=3) for _ in range(3)]
            assert [len(each.token_ids) for each in await asyncio.gather(*steps)] == [3] * 3

    for _ in range(LOOPS):
        asyncio.run(run())
    assert "Event loop is closed" not in caplog.text
