"""`pbkv hints` and `pbkv otel` against a real predictor, and `pbkv serve` with the span receiver."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.integrations.kv_hints import from_json, from_msgpack
from pbkv_cluster.integrations.otel.member import OtelMember
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.store.cluster_index import Directory, RedisServer, ServiceEntry, connect
from tests.cli.conftest import DEADLINE_S, LoopThread, Pbkv
from tests.cli.stand_in_cluster import StandInCluster
from tests.integrations.otel_spans import export, otlp
from tests.polling import wait_for


@pytest.fixture
def predictor(loop_thread: LoopThread) -> Iterator[PredictorServer]:
    """A predictor in a thread; the workflow `w`, with a step of agent `a`, and another one are open."""
    server = loop_thread.run(_start())
    yield server
    loop_thread.run(server.stop())


async def _start() -> PredictorServer:
    server = PredictorServer(PredictorConfig())
    await server.start("127.0.0.1", 0)
    server.service.report(
        [
            WorkflowEvent(EventKind.WORKFLOW_STARTED, "w", 0, 1.0),
            WorkflowEvent(EventKind.STEP_STARTED, "w", 1, 2.0, agent="a"),
            WorkflowEvent(EventKind.WORKFLOW_STARTED, "other", 0, 1.0),
        ]
    )
    return server


def test_hints_are_printed_one_per_line(pbkv: Pbkv, predictor: PredictorServer) -> None:
    done = pbkv("hints", "--predictor", predictor.address, "--limit", "2")
    assert done.code == 0
    sessions = {from_json(line).actions[0].payload["session_id"] for line in done.out.splitlines()}
    assert sessions == {"w", "other"}


def test_hints_of_one_workflow_as_msgpack(predictor: PredictorServer) -> None:
    command = [sys.executable, "-m", "pbkv_cluster.cli", "hints", "--predictor", predictor.address]
    command += ["--workflow", "w", "--format", "msgpack", "--limit", "1"]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=True)
    (retain,) = from_msgpack(done.stdout).actions[:1]
    assert (retain.action_type, retain.payload["session_id"]) == ("retain", "w")


@pytest.mark.parametrize("command", ["hints", "otel"])
def test_the_predictor_s_address_or_a_redis_is_required(pbkv: Pbkv, command: str) -> None:
    done = pbkv(command)
    assert (done.code, "--predictor: is missing" in done.err) == (2, True)


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    server = RedisServer.resolve("", host="127.0.0.1")
    yield server.url
    server.stop()


@pytest.mark.parametrize("command", ["hints", "otel"])
def test_another_cluster_s_name_lists_the_clusters_of_the_redis(
    pbkv: Pbkv, loop_thread: LoopThread, redis: str, command: str
) -> None:
    async def announce(*clusters: str) -> None:
        client = connect(redis)
        await client.flushall()
        for cluster in clusters:
            await Directory(client, cluster, DEADLINE_S).announce_service(ServiceEntry("gateway", "127.0.0.1:1", 1))
        await client.aclose()

    loop_thread.run(announce())
    done = pbkv(command, "--redis", redis)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "redis.url: this Redis knows no running cluster" in done.err
    loop_thread.run(announce("red", "blue"))
    done = pbkv(command, "--redis", redis)
    assert (done.code, done.err) == (2, "pbkv: cluster.name: this Redis knows no cluster 'pbkv'; it knows blue, red\n")


def test_an_absent_predictor_is_one_clear_line(pbkv: Pbkv) -> None:
    done = pbkv("hints", "--predictor", "127.0.0.1:1")
    assert done.code == 1
    assert len(done.err.splitlines()) == 1


def test_otel_takes_spans_until_it_is_interrupted(predictor: PredictorServer) -> None:
    command = [sys.executable, "-m", "pbkv_cluster.cli", "otel", "--predictor", predictor.address]
    command += ["--port", "0", "--http-port", "-1", "--set", "otel.reorder_s=0.1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PBKV_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        address = process.stdout.readline().split()[1]
        answer = asyncio.run(export(address, otlp(1, 1, 2, "chat", parent=9, agent_name="a")))
        assert not answer.partial_success.rejected_spans
        wait_for(lambda: predictor.service.open_workflows == 3, DEADLINE_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0, process.stderr.read()


def test_serve_shows_no_password(pbkv: Pbkv, clusters: list[StandInCluster]) -> None:
    result = pbkv("serve")
    assert clusters[0].redis_url == "redis://:s3cret@127.0.0.1:1"
    assert "s3cret" not in result.out + result.err
    assert "redis      redis://:***@127.0.0.1:1" in result.out
    assert 'export PBKV_REDIS_URL="$(cat /state/redis.url)"' in result.out


def test_serve_starts_the_receiver_if_it_is_enabled(pbkv: Pbkv, clusters: list[StandInCluster]) -> None:
    assert "spans" not in pbkv("serve").out
    assert "spans      127.0.0.1:3" in pbkv("serve", "--set", "otel.enabled=true").out
    assert [cluster.edges for cluster in clusters] == [{}, {"otel": OtelMember}]
