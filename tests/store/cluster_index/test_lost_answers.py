"""An answer of Redis is lost, so the client sends the call again: that is as if it had been made once."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.store.cluster_index import (
    BlockIndex,
    Directory,
    EndpointEntry,
    GatewayEntry,
    Holder,
    IndexMirror,
    MemberEntry,
    NodeEntry,
    NodeRequest,
    NodeState,
    NodeStateEntry,
    ProblemsEntry,
    ServiceEntry,
    WorkflowEntry,
    connect,
)
from tests.polling import eventually
from tests.store.cluster_index.published import HOLDER, KEYS, WORKER, blocks_in
from tests.store.redis_connection.proxy import Proxy, proxy_of
from tests.store.redis_connection.servers import Server, serving

TTL_S = 600.0
PLACE = "127.0.0.1:7000"
ME, OTHER = Holder("gateway", "first", PLACE), Holder("gateway-1", "other", "127.0.0.1:7001")
SERVICE = ServiceEntry("predictor", PLACE, 17)
GATEWAY = GatewayEntry("gateway", "first", "node-0", PLACE, "", 17)
NODE = NodeEntry("node-0", "127.0.0.1", PLACE, 1 << 20, PLACE, "00ff")
MEMBER = MemberEntry("worker-0", True, 0, "")
ENDPOINT = EndpointEntry("worker-0", "worker", "node-0", PLACE)
STATE = NodeStateEntry("node-0", "127.0.0.1", NodeState.SERVING)
REQUEST = NodeRequest("node-0", drain=True)
PROBLEMS = ProblemsEntry("worker-0", ("no room",))
WORKFLOW = WorkflowEntry("w", ME, 0, "app", "acme", TTL_S, 1.0, steps=2)
TAKEN = replace(WORKFLOW, holder=OTHER, taken=1)

Call = Callable[[Directory, BlockIndex], Awaitable[object]]

# Every call that changes something, by its name; some of them in several cases. Before it, all that is above is there.
CALLS: list[tuple[str, Call]] = [
    ("announce_worker", lambda directory, _: directory.announce_worker(replace(WORKER, pid=5))),
    ("withdraw_worker", lambda directory, _: directory.withdraw_worker(*HOLDER)),
    ("announce_node", lambda directory, _: directory.announce_node(replace(NODE, node_id="node-1"))),
    ("withdraw_node", lambda directory, _: directory.withdraw_node(NODE.node_id)),
    ("announce_service", lambda directory, _: directory.announce_service(replace(SERVICE, pid=5))),
    ("withdraw_service", lambda directory, _: directory.withdraw_service(SERVICE)),
    ("announce_gateway", lambda directory, _: directory.announce_gateway(replace(GATEWAY, pid=5))),
    ("withdraw_gateway", lambda directory, _: directory.withdraw_gateway(GATEWAY)),
    ("announce_member", lambda directory, _: directory.announce_member(replace(MEMBER, restarts=1))),
    ("withdraw_member", lambda directory, _: directory.withdraw_member(MEMBER)),
    ("announce_endpoint", lambda directory, _: directory.announce_endpoint(replace(ENDPOINT, node_id="node-1"))),
    ("withdraw_endpoint", lambda directory, _: directory.withdraw_endpoint(ENDPOINT)),
    ("announce_node_state", lambda directory, _: directory.announce_node_state(replace(STATE, reason="old"))),
    ("withdraw_node_state", lambda directory, _: directory.withdraw_node_state(STATE)),
    ("request_of_node", lambda directory, _: directory.request_of_node(replace(REQUEST, drain=False))),
    ("withdraw_node_request", lambda directory, _: directory.withdraw_node_request(REQUEST)),
    ("announce_problems", lambda directory, _: directory.announce_problems(replace(PROBLEMS, problems=("too slow",)))),
    ("withdraw_problems", lambda directory, _: directory.withdraw_problems(PROBLEMS.member)),
    ("exchange_stamp", lambda directory, _: directory.exchange_stamp("first", "8")),
    ("exchange_stamp", lambda directory, _: directory.exchange_stamp("new", "1")),
    ("put_workflow", lambda directory, _: directory.put_workflow(replace(WORKFLOW, steps=3))),
    ("put_workflow", lambda directory, _: directory.put_workflow(replace(WORKFLOW, workflow_id="new"))),
    ("put_workflow", lambda directory, _: directory.put_workflow(TAKEN)),
    ("take_workflow", lambda directory, _: directory.take_workflow(TAKEN, ME)),
    ("take_workflow", lambda directory, _: directory.take_workflow(TAKEN, replace(ME, incarnation="earlier"))),
    ("take_workflow", lambda directory, _: directory.take_workflow(replace(TAKEN, workflow_id="ended"), ME)),
    ("renew_workflows", lambda directory, _: directory.renew_workflows([replace(WORKFLOW, steps=3), TAKEN])),
    ("remove_workflow", lambda directory, _: directory.remove_workflow("w", ME)),
    ("remove_workflow", lambda directory, _: directory.remove_workflow("w", OTHER)),
    ("announce", lambda _, index: index.announce(*HOLDER, {KEYS[3]: 1})),
    ("publish", lambda _, index: index.publish(*HOLDER, {KEYS[3]: 1, KEYS[0]: 0})),
    ("renew", lambda _, index: index.renew(*HOLDER)),
    ("drop", lambda _, index: index.drop(*HOLDER)),
]
READING = {
    *("worker", "workers", "nodes", "service", "service_address", "gateways", "members", "endpoints", "node_states"),
    *("node_requests", "problems", "workflow", "match", "number", "residencies"),
}


def test_every_call_that_changes_something_is_tried() -> None:
    methods = {**vars(Directory), **vars(BlockIndex)}
    calls = {name for name, method in methods.items() if inspect.iscoroutinefunction(method) and not name.startswith("_")}
    assert calls - READING == {name for name, _ in CALLS}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with proxy_of(server) as started:
        yield started


class Cluster:
    """One that has everything."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis, self._name = redis, name
        self.directory, self.index = Directory(redis, name, TTL_S), BlockIndex(redis, name, TTL_S)

    async def start(self) -> None:
        await self.directory.announce_worker(WORKER)
        await self.directory.announce_node(NODE)
        await self.directory.announce_service(SERVICE)
        await self.directory.announce_gateway(GATEWAY)
        await self.directory.announce_member(MEMBER)
        await self.directory.announce_endpoint(ENDPOINT)
        await self.directory.announce_node_state(STATE)
        await self.directory.request_of_node(REQUEST)
        await self.directory.announce_problems(PROBLEMS)
        await self.directory.put_workflow(WORKFLOW)
        await self.directory.exchange_stamp("first", "7")
        await self.index.announce(*HOLDER, {KEYS[0]: 1, KEYS[1]: 1})
        assert await self.index.publish(*HOLDER, {KEYS[2]: 1})

    @asynccontextmanager
    async def mirrored(self) -> AsyncIterator[None]:
        """A mirror follows what is done in the body, and sees what the index says then."""
        mirror = IndexMirror(self.index, self.directory, SystemClock())
        mirror.start()
        await eventually(lambda: mirror.is_current)
        yield
        blocks = await blocks_in(self.index)
        await eventually(lambda: mirror.blocks.blocks(HOLDER) == blocks)
        assert mirror.repairs == 0
        await mirror.stop()

    async def kept(self) -> dict[bytes, object]:
        """What is in Redis: all but the times, the ids of calls, their answers, and the stream, which the mirror follows."""
        prefix = f"pbkv:{{{self._name}}}:".encode()
        found: dict[bytes, object] = {}
        async for key in self._redis.scan_iter(match=prefix + b"*"):
            name = key.removeprefix(prefix)
            match await self._redis.type(key):
                case b"string" if not name.startswith(b"answer:"):
                    found[name] = await self._redis.get(key)
                case b"zset":
                    found[name] = set(await self._redis.zrange(key, 0, -1))
                case b"hash":
                    fields = await self._redis.hgetall(key)
                    found[name] = {field: value for field, value in fields.items() if field != b"id"}
        return found


ANNOUNCE = CALLS[-4]
# What the request contains whose answer is lost: that of the script with which a call ends, or one before.
CASES = [(*each, b"EVALSHA") for each in CALLS] + [(*ANNOUNCE, b"UNLINK"), (*ANNOUNCE, b"HSET")]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: f"{CASES[case][0]}-{case}")
async def test_a_call_whose_answer_is_lost_is_as_if_it_had_been_made_once(proxy: Proxy, case: int) -> None:
    name, call, lost = CASES[case]
    client = connect(f"redis://127.0.0.1:{proxy.port}", timeout_s=10.0)
    proxy.closes = True
    answers, states = [], []
    for how in ("once", "twice"):
        cluster = Cluster(client, f"{how}-{case}")
        await cluster.start()
        async with cluster.mirrored() if name in vars(BlockIndex) else nullcontext():
            proxy.loses_answer_to = lost if how == "twice" else b""
            answers.append(await call(cluster.directory, cluster.index))
            assert not proxy.loses_answer_to, "it has been asked"
        states.append(await cluster.kept())
    assert answers[0] == answers[1]
    assert states[0] == states[1]
    await client.aclose()


async def test_the_answer_to_a_call_is_kept_for_a_while_and_for_that_call_alone(redis: Redis) -> None:
    directory = Directory(redis, "test", TTL_S)
    await directory.put_workflow(WORKFLOW)
    assert await directory.take_workflow(TAKEN, ME)
    assert not await directory.take_workflow(TAKEN, ME), "another call has taken it"
    answers = [key async for key in redis.scan_iter(match="pbkv:{test}:answer:*")]
    assert len(answers) == 2
    for key in answers:
        assert 0 < await redis.pttl(key) <= 60_000
