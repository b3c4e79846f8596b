"""What a client does when its gateway is not there, comes back, does not answer, or is called by a forked process."""

import math
import subprocess
import sys
from typing import Any

import pytest

from pbkv_cluster.client import AsyncClient, Client
from pbkv_cluster.client.aio import AsyncWorkflow
from pbkv_cluster.client.blocks import AsyncBlockLease, BlockLease
from pbkv_cluster.client.connection import AsyncConnection, Connection
from pbkv_cluster.client.sync import Workflow
from pbkv_cluster.core.errors import DeadlineExceeded, InvalidArgument, PbkvError, Unavailable
from pbkv_cluster.rpc.security import Access
from tests.client.flaky_gateway import FlakyGateway, served

NOBODY = "127.0.0.1:1"

# Run as a process of its own: a fork of one with the threads of other tests would be a test of those.
FORKS = """
import os, sys
from pbkv_cluster.client import Client
from pbkv_cluster.core.errors import PbkvError

def ended_well(work):
    child = os.fork()
    if not child:
        try:
            work()
        except PbkvError as error:
            print(type(error).__name__, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0

with Client(sys.argv[1]) as client:
    workflow = client.start_workflow("parent")
    for number in range(5):
        assert ended_well(lambda: client.start_workflow(f"child {number}"))
        assert client.start_workflow("parent").id == workflow.id
"""
FORKED_ASYNC = """
import asyncio, os, sys
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.core.errors import FailedPrecondition

async def make():
    return AsyncClient(sys.argv[1])

client = asyncio.run(make())
child = os.fork()
if not child:
    try:
        asyncio.run(client.start_workflow())
    except FailedPrecondition as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


async def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    async with AsyncClient(NOBODY) as client:
        with pytest.raises(Unavailable):
            await client.start_workflow()


def test_a_gateway_that_is_not_there_is_unavailable_without_asyncio() -> None:
    with Client(NOBODY) as client, pytest.raises(Unavailable):
        client.start_workflow()


def test_a_call_that_may_be_made_twice_is_tried_again_as_the_same() -> None:
    gateway = FlakyGateway(refusals=2)
    with served(gateway) as address, Client(address) as client:
        workflow = client.start_workflow()
    assert gateway.started == [workflow.id] * 3


async def test_the_same_with_asyncio() -> None:
    gateway = FlakyGateway(refusals=2)
    with served(gateway) as address:
        async with AsyncClient(address) as client:
            workflow = await client.start_workflow()
    assert gateway.started == [workflow.id] * 3


def test_a_step_that_its_gateway_ends_is_sent_again_under_the_same_id() -> None:
    gateway = FlakyGateway()
    with served(gateway) as address, Client(address) as client, pytest.raises(Unavailable):
        client.start_workflow().run(agent="a", prompt="hello")
    assert len(gateway.steps) == 5
    assert len(set(gateway.steps)) == 1
    assert gateway.steps[0]


def test_a_step_that_a_gateway_says_cannot_be_run_is_not_sent_again() -> None:
    gateway = FlakyGateway(final=True)
    with served(gateway) as address, Client(address) as client, pytest.raises(Unavailable):
        client.start_workflow().run(agent="a", prompt="hello")
    assert len(gateway.steps) == 1


def test_the_next_gateway_of_a_list_is_called_where_one_is_not_there() -> None:
    gateway = FlakyGateway()
    with served(gateway) as address:
        for endpoint in ([NOBODY, address], f"{NOBODY}, {address}"):
            with Client(endpoint) as client:
                client.start_workflow("mine")
                client.start_workflow("mine")
    assert gateway.started == ["mine"] * 4


async def test_the_next_gateway_is_called_with_asyncio() -> None:
    gateway = FlakyGateway()
    with served(gateway) as address:
        async with AsyncClient([NOBODY, address]) as client:
            await client.start_workflow("mine")
    assert gateway.started == ["mine"]


def test_the_environment_names_gateways_where_a_program_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = FlakyGateway()
    with served(gateway) as address:
        monkeypatch.setenv("PBKV_ADDRESS", f"{NOBODY},{address}")
        with Client() as client:
            client.start_workflow("mine")
    assert gateway.started == ["mine"]


@pytest.mark.parametrize("endpoint", ["localhost", ["127.0.0.1:1", "nobody"], "127.0.0.1:1,", [f"h:{n}" for n in range(1, 99)]])
def test_a_gateway_that_has_no_address_is_refused_by_name(endpoint: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^endpoint: "):
        Client(endpoint)


def test_a_call_that_nobody_answers_ends_in_time() -> None:
    with served(FlakyGateway()) as address, Client(address, timeout_s=0.2) as client, pytest.raises(DeadlineExceeded):
        client.status()


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_time_limit_is_a_positive_number(kind: Any, timeout_s: float) -> None:
    with pytest.raises(InvalidArgument, match=r"^timeout_s: must be a positive"):
        kind(NOBODY, timeout_s=timeout_s)


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf, "1"])
async def test_a_time_limit_of_a_step_is_one_too(timeout_s: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^timeout_s: must be a positive"):
        Workflow(Connection(NOBODY, 1.0, Access()), "w", 60.0).run(agent="a", prompt="p", timeout_s=timeout_s)
    connection = AsyncConnection(NOBODY, 1.0, Access())
    with pytest.raises(InvalidArgument, match=r"^timeout_s: must be a positive"):
        await AsyncWorkflow(connection, "w", 60.0).run(agent="a", prompt="p", timeout_s=timeout_s)
    await connection.close()


async def test_leaving_a_lease_hides_no_error() -> None:
    with pytest.raises(KeyError), BlockLease(Connection(NOBODY, 0.1, Access()), "id", "", 0, 0):
        raise KeyError("of the body")
    connection = AsyncConnection(NOBODY, 0.1, Access())
    with pytest.raises(KeyError):
        async with AsyncBlockLease(connection, "id", "", 0, 0):
            raise KeyError("of the body")
    with pytest.raises(PbkvError):
        async with AsyncBlockLease(connection, "id", "", 0, 0):
            pass
    await connection.close()


def test_a_client_works_in_processes_forked_from_its_own() -> None:
    with served(FlakyGateway()) as address:
        done = run(FORKS, address, GRPC_ENABLE_FORK_SUPPORT="1")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_forked_asyncio_client_says_what_to_do() -> None:
    done = run(FORKED_ASYNC, NOBODY)
    assert "make one in each process, or use Client" in done.stdout, done.stderr


def run(code: str, address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-c", code, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
