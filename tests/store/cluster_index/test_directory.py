"""The directory on a real Redis."""

import json
import logging
from dataclasses import asdict, replace
from typing import Any

import pytest
from redis.asyncio import Redis

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.workflow.step_graph import Join, StepGraph, StepNode
from pbkv_cluster.store.cluster_index import (
    Directory,
    Holder,
    NodeEntry,
    NodeRequest,
    NodeState,
    NodeStateEntry,
    ProblemsEntry,
    RedisServer,
    ServiceEntry,
    WorkflowEntry,
    connect,
)
from pbkv_cluster.store.cluster_index.entries import EntryCodec, MalformedEntry
from tests.polling import eventually
from tests.store.cluster_index.helpers import worker_entry

NODE = NodeEntry(
    node_id="node-0",
    host="127.0.0.1",
    address="127.0.0.1:7100",
    arena_bytes=1 << 30,
    peer_address="127.0.0.1:7101",
    peer_token="00ff",
)
HOLDER = Holder("gateway", "first", "127.0.0.1:7000")
GATEWAY = ServiceEntry(name="gateway", address="127.0.0.1:7000", pid=17)


def workflow(workflow_id: str = "w1", lease_s: float = 60.0) -> WorkflowEntry:
    return WorkflowEntry(workflow_id, HOLDER, 0, "swe-agent", "acme", lease_s, started_at=1_790_000_000.123456, steps=0)


@pytest.fixture
def directory(redis: Redis) -> Directory:
    return Directory(redis, "test", ttl_s=60.0)


async def test_members_are_found_as_announced_until_withdrawn(directory: Directory) -> None:
    workers = [worker_entry(f"worker-{number}") for number in range(3)]
    for entry in reversed(workers):
        await directory.announce_worker(entry)
    await directory.announce_node(NODE)
    await directory.announce_service(GATEWAY)
    assert await directory.workers() == workers
    assert await directory.nodes() == [NODE]
    assert await directory.service("gateway") == GATEWAY
    assert await directory.service_address("gateway") == GATEWAY.address

    await directory.withdraw_worker("worker-1")
    await directory.withdraw_node("node-0")
    await directory.withdraw_service(GATEWAY)
    assert await directory.workers() == [workers[0], workers[2]]
    assert await directory.nodes() == []
    assert await directory.service("gateway") is None
    assert await directory.service_address("gateway") is None


async def test_states_of_nodes_are_listed_by_host(directory: Directory) -> None:
    states = [NodeStateEntry("b", "10.0.0.1", NodeState.SERVING), NodeStateEntry("a", "10.0.0.2", NodeState.DRAINED, "old")]
    for entry in reversed(states):
        await directory.announce_node_state(entry)
    assert await directory.node_states() == states
    await directory.withdraw_node_state(states[0])
    assert await directory.node_states() == [states[1]]


async def test_a_request_to_a_node_is_there_until_it_is_withdrawn_or_a_later_one_replaces_it(directory: Directory) -> None:
    old, new, other = NodeRequest("a", drain=True, reason="old"), NodeRequest("a", drain=False), NodeRequest("b", drain=True)
    for request in (old, new, other):
        await directory.request_of_node(request)
    for _ in range(2):
        assert sorted(await directory.node_requests(), key=lambda each: each.node_id) == [new, other]
    await directory.withdraw_node_request(old)
    await directory.withdraw_node_request(other)
    assert await directory.node_requests() == [new]
    await directory.withdraw_node_request(new)
    assert await directory.node_requests() == []


async def test_clusters_do_not_see_each_other(redis: Redis, directory: Directory) -> None:
    await directory.announce_worker(worker_entry())
    assert await Directory(redis, "other", ttl_s=60.0).workers() == []


async def test_announcing_again_replaces_the_entry(directory: Directory) -> None:
    await directory.announce_worker(worker_entry())
    moved = replace(worker_entry(), address="127.0.0.1:7002")
    await directory.announce_worker(moved)
    assert await directory.workers() == [moved]


async def test_a_late_leaver_does_not_remove_its_successor(directory: Directory) -> None:
    await directory.announce_worker(worker_entry(incarnation="two"))
    await directory.withdraw_worker("worker-0", incarnation="one")
    assert await directory.workers() == [worker_entry(incarnation="two")]
    await directory.withdraw_worker("worker-0", incarnation="two")
    assert await directory.workers() == []

    await directory.announce_service(GATEWAY)
    await directory.withdraw_service(replace(GATEWAY, pid=18))
    assert await directory.service("gateway") == GATEWAY


async def test_silent_members_and_workflows_expire_with_all_their_keys(redis: Redis) -> None:
    directory = Directory(redis, "test", ttl_s=0.2)
    await directory.announce_worker(worker_entry())
    await directory.announce_node(NODE)
    await directory.announce_service(GATEWAY)
    await directory.put_workflow(workflow(lease_s=0.2))
    await eventually(lambda: no_keys(redis))
    assert await directory.workers() == []
    assert await directory.nodes() == []
    assert await directory.service("gateway") is None
    assert [entry async for entry in directory.workflows()] == []


async def no_keys(redis: Redis) -> bool:
    return await redis.dbsize() == 0


async def test_an_expired_member_leaves_while_others_stay(redis: Redis, directory: Directory) -> None:
    brief = Directory(redis, "test", ttl_s=0.2)
    await directory.announce_worker(worker_entry("stays"))
    await brief.announce_worker(worker_entry("leaves"))

    async def one_left() -> bool:
        return [entry.worker_id for entry in await directory.workers()] == ["stays"]

    await eventually(one_left)
    await directory.announce_worker(worker_entry("stays"))
    assert await redis.zcard("pbkv:{test}:workers") == 1  # the next announcement removed the expired id


async def test_workflows_are_renewed_and_ended(redis: Redis, directory: Directory) -> None:
    await directory.put_workflow(workflow())
    await redis.pexpire("pbkv:{test}:workflow:w1", 1000)
    await directory.put_workflow(replace(workflow(), steps=3))
    assert await redis.pttl("pbkv:{test}:workflow:w1") > 1000
    assert await directory.workflow("w1") == replace(workflow(), steps=3)
    assert [entry async for entry in directory.workflows()] == [replace(workflow(), steps=3)]

    await directory.remove_workflow("w1", replace(HOLDER, incarnation="other"))
    assert await directory.workflow("w1") == replace(workflow(), steps=3)
    await directory.remove_workflow("w1", HOLDER)
    assert await directory.workflow("w1") is None
    assert [entry async for entry in directory.workflows()] == []


async def test_many_workflows_are_listed_once_each(directory: Directory) -> None:
    ids = [f"w{number}" for number in range(1700)]
    for first in range(0, len(ids), 100):
        assert all(await directory.renew_workflows([workflow(each, lease_s=3600.0) for each in ids[first : first + 100]]))
    listed = [entry.workflow_id async for entry in directory.workflows()]
    assert sorted(listed) == sorted(ids)


async def test_fields_of_a_newer_writer_are_ignored(redis: Redis, directory: Directory) -> None:
    await directory.announce_worker(worker_entry())
    newer = asdict(worker_entry()) | {"zone": "eu-1", "namespace": asdict(worker_entry().namespace) | {"quantised": True}}
    await redis.set("pbkv:{test}:worker:worker-0", json.dumps(newer))
    assert await directory.workers() == [worker_entry()]
    assert directory.malformed == 0


@pytest.mark.parametrize("payload", ["not json", "[]", "{}", "\xff", json.dumps(asdict(worker_entry()) | {"pid": "many"})])
async def test_a_malformed_entry_is_skipped(
    redis: Redis, directory: Directory, caplog: pytest.LogCaptureFixture, payload: str
) -> None:
    await directory.announce_worker(worker_entry("good"))
    await directory.announce_worker(worker_entry("bad"))
    await redis.set("pbkv:{test}:worker:bad", payload.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert await directory.workers() == [worker_entry("good")]
    assert directory.malformed == 1
    assert "pbkv:{test}:worker:bad" in caplog.text
    await directory.announce_worker(worker_entry("bad"))
    assert len(await directory.workers()) == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"address": "127.0.0.1:99999"}, "address: the port must be a number"),
        ({"address": "somewhere"}, "address: must be HOST:PORT"),
        ({"worker_id": ""}, "id: must not be empty"),
        ({"worker_id": "w" * 257}, "id: at most 256 bytes"),
        ({"gpu_blocks": -1}, "gpu_blocks: "),
        ({"vocab_size": 0}, "vocab_size: "),
        ({"max_context_tokens": 10**30}, "max_context_tokens: "),
    ],
)
async def test_an_entry_is_believed_only_within_bounds(
    redis: Redis, directory: Directory, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], problem: str
) -> None:
    await directory.announce_worker(worker_entry())
    await redis.set("pbkv:{test}:worker:worker-0", json.dumps(asdict(worker_entry()) | changes))
    for _ in range(2):
        assert await directory.workers() == []
    assert directory.malformed == 2
    assert caplog.text.count("skipped the malformed entry") == 1
    assert problem in caplog.text


@pytest.mark.parametrize("lease_s", ["Infinity", "NaN", "-1", "1e300"])
async def test_a_workflow_with_an_impossible_lease_is_skipped(redis: Redis, directory: Directory, lease_s: str) -> None:
    await directory.put_workflow(workflow("w"))
    text = json.dumps(asdict(workflow("w")) | {"lease_s": "L"}).replace('"L"', lease_s)
    await redis.set("pbkv:{test}:workflow:w", text)
    assert await directory.workflow("w") is None
    assert [entry async for entry in directory.workflows()] == []


async def test_an_id_that_is_not_text_is_skipped(redis: Redis, directory: Directory, caplog: pytest.LogCaptureFixture) -> None:
    await directory.announce_worker(worker_entry("good"))
    await redis.zadd("pbkv:{test}:workers", {b"\xff\xfe": 2e12})
    assert await directory.workers() == [worker_entry("good")]
    assert directory.malformed == 1
    assert "its id is not UTF-8" in caplog.text


async def test_an_entry_that_is_too_large_is_not_parsed(redis: Redis, directory: Directory) -> None:
    await directory.announce_worker(worker_entry())
    await redis.set("pbkv:{test}:worker:worker-0", b" " * (5 << 20))
    assert await directory.workers() == []


async def test_problems_of_members_come_and_go(directory: Directory) -> None:
    await directory.announce_problems(ProblemsEntry("worker-1", ("no room", "too slow")))
    await directory.announce_problems(ProblemsEntry("predictor", ("the disk is full",)))
    assert [entry.member for entry in await directory.problems()] == ["predictor", "worker-1"]
    await directory.withdraw_problems("predictor")
    assert await directory.problems() == [ProblemsEntry("worker-1", ("no room", "too slow"))]


async def test_without_redis_every_call_is_unavailable() -> None:
    with RedisServer.resolve("") as server:
        client = connect(server.url)
        directory = Directory(client, "test", ttl_s=60.0)
        await directory.announce_worker(worker_entry())
    for call in (
        directory.announce_worker(worker_entry()),
        directory.workers(),
        directory.service("gateway"),
        directory.workflow("w1"),
        directory.remove_workflow("w1", HOLDER),
    ):
        with pytest.raises(Unavailable, match="Redis"):
            await call
    await client.aclose()


def test_a_workflow_is_stored_with_its_step_graph() -> None:
    codec = EntryCodec(WorkflowEntry)
    graph = StepGraph((StepNode("a"), StepNode("b", ("a", "b"), Join.OR)))
    for entry in (workflow(), replace(workflow(), step_graph=graph)):
        assert codec.decode(codec.encode(entry)) == entry
    fields = json.loads(codec.encode(replace(workflow(), step_graph=graph)))
    old = {name: value for name, value in fields.items() if name != "step_graph"}
    assert codec.decode(json.dumps(old).encode()) == workflow(), "an older version wrote no step graph"
    fields["step_graph"]["nodes"] = []
    with pytest.raises(MalformedEntry, match=r"step_graph\.nodes"):
        codec.decode(json.dumps(fields).encode())
