"""A gateway with real gRPC, Redis and tokenizer. Only the answers of its peers are scripted (`peers`)."""

import asyncio
import atexit
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio

from pbkv_cluster.client.connection import AsyncConnection
from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.tokens import unpack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.gateway.server import GatewayServer
from pbkv_cluster.rpc import convert
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.security import Access
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2
from pbkv_cluster.rpc.v1 import workflow_pb2_grpc as workflow_grpc
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, RedisServer, ServiceEntry, WorkflowEntry
from pbkv_cluster.store.cluster_index import connect as connect_redis
from tests.gateway.peers import ScriptedPredictor, ScriptedWorker
from tests.polling import eventually

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.workflow_pb2_grpc import WorkflowServiceAsyncStub

PATIENCE_S = 20.0
LEASE_S = 60.0  # of members in the directory; the tests do not renew it


@cache
def codec() -> TextCodec:
    """A codec with one token per byte: `a` is 97."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Byte-level tokenizers write a byte that is no visible Latin-1 character as a character from 256 on.
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    vocab = {chr(byte if byte in visible else 256 + hidden.index(byte)): byte for byte in range(256)} | {"<end>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")  # type: ignore[no-untyped-call]
    fast.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    return TextCodec(fast)


@cache
def shared_redis() -> str:
    """The URL of a server that all tests share, each with a cluster name of its own."""
    server = RedisServer.start()
    atexit.register(server.stop)
    return server.url


async def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for `condition`."""
    await eventually(condition, PATIENCE_S, lambda: what)


@dataclass(eq=False)
class Answer:
    """What a client received of one step."""

    accepted: list[workflow_pb2.StepEvent.Accepted] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finished: list[workflow_pb2.StepEvent.Finished] = field(default_factory=list)

    def add(self, event: workflow_pb2.StepEvent) -> None:
        assert not self.finished, "nothing may follow Finished"
        match event.WhichOneof("event"):
            case "accepted":
                self.accepted.append(event.accepted)
            case "tokens":
                assert self.accepted, "Accepted comes first"
                self.token_ids += unpack(event.tokens.token_ids.data)
                self.text += event.tokens.text
            case "finished":
                self.finished.append(event.finished)

    @property
    def usage(self) -> Usage:
        return convert.usage_from_wire(self.finished[0].usage)


@dataclass(eq=False)
class Rig:
    """A gateway, its peers and a client's stub."""

    config: Config
    clock: Clock
    directory: Directory
    index: BlockIndex
    stack: AsyncExitStack
    workers: list[ScriptedWorker] = field(default_factory=list)
    gateway: GatewayServer = field(init=False)
    address: str = ""
    stub: "WorkflowServiceAsyncStub" = field(init=False)

    async def add_worker(self, worker: ScriptedWorker, *, address: str = "") -> ScriptedWorker:
        """Starts a worker and announces it, at `address` if one is given."""
        await worker.start()
        self.stack.push_async_callback(worker.server.stop, 0)
        worker.address = address or worker.address
        await self.directory.announce_worker(worker.record())
        self.workers.append(worker)
        return worker

    async def announce_blocks(
        self, worker_id: str, keys: Iterable[bytes], tier: Tier = Tier.GPU, incarnation: str = "1"
    ) -> None:
        """A worker announces that it has these blocks and no others; returns when the gateway knows."""
        blocks = {
            key: Residency(frozenset({tier}), slot=-1 if tier is Tier.GPU else number).pack() for number, key in enumerate(keys)
        }
        await self.index.announce(worker_id, incarnation, blocks)
        await until(
            lambda: self.gateway.mirror.blocks.blocks((worker_id, incarnation)) == blocks, "the gateway knows the blocks"
        )

    async def add_predictor(self) -> ScriptedPredictor:
        predictor = ScriptedPredictor()
        await predictor.start()
        self.stack.push_async_callback(predictor.server.stop, 0)
        await self.directory.announce_service(ServiceEntry("predictor", predictor.address, os.getpid()))
        return predictor

    async def start_gateway(self) -> None:
        self.gateway = GatewayServer(self.config, self.directory, self.index, codec(), self.clock)
        self.address = await self.gateway.start("127.0.0.1", 0)
        channel = connect(self.address)
        await asyncio.wait_for(channel.channel_ready(), PATIENCE_S)
        self.stub = workflow_grpc.WorkflowServiceStub(channel)
        self.stack.push_async_callback(self.gateway.stop)
        self.stack.push_async_callback(channel.close)

    async def restart_gateway(self) -> None:
        await self.gateway.stop()
        await self.start_gateway()

    async def start_workflow(self, **fields: Any) -> str:
        return (await self.stub.StartWorkflow(workflow_pb2.StartWorkflowRequest(**fields))).workflow_id

    async def end_workflow(self, workflow_id: str) -> None:
        await self.stub.EndWorkflow(workflow_pb2.EndWorkflowRequest(workflow_id=workflow_id))

    def submit(self, workflow_id: str, metadata: tuple[tuple[str, str], ...] | None = None, **fields: Any) -> Any:
        """The call of a step; its output has four tokens unless `fields` say otherwise."""
        return self.stub.SubmitStep(step_request(workflow_id, **fields), timeout=PATIENCE_S, metadata=metadata)

    async def run(self, workflow_id: str, **fields: Any) -> Answer:
        return await read(self.submit(workflow_id, **fields))

    async def status(self) -> workflow_pb2.GetClusterStatusResponse:
        return await self.stub.GetClusterStatus(workflow_pb2.GetClusterStatusRequest())

    async def recorded(self, workflow_id: str, steps: int) -> WorkflowEntry:
        """The workflow's entry in the directory, once it shows that many steps."""
        found: list[WorkflowEntry] = []

        async def shows() -> bool:
            entry = await self.directory.workflow(workflow_id)
            found[:] = [] if entry is None or entry.steps != steps else [entry]
            return bool(found)

        await eventually(shows, PATIENCE_S)
        return found[0]

    async def sees(self, condition: Callable[[workflow_pb2.GetClusterStatusResponse], bool], what: str) -> None:
        """Waits until the gateway's status fulfils `condition`."""

        async def shows() -> bool:
            return condition(await self.status())

        await eventually(shows, PATIENCE_S, lambda: f"the status shows {what}")


@asynccontextmanager
async def running(
    *workers: ScriptedWorker,
    clock: Clock | None = None,
    redis_url: str = "",
    engine: Mapping[str, object] | None = None,
    logging: Mapping[str, object] | None = None,
    limits: Mapping[str, object] | None = None,
    **gateway: object,
) -> AsyncIterator[Rig]:
    """A gateway over the given workers; further arguments are fields of its configuration."""
    config = Config.model_validate(
        {"gateway": gateway, "engine": engine or {}, "logging": logging or {}, "limits": limits or {}}
    )
    async with AsyncExitStack() as stack:
        redis = connect_redis(redis_url or shared_redis())
        stack.push_async_callback(redis.aclose)
        cluster = uuid.uuid4().hex
        directory, index = Directory(redis, cluster, LEASE_S), BlockIndex(redis, cluster, LEASE_S)
        rig = Rig(config, clock or SystemClock(), directory, index, stack)
        for worker in workers:
            await rig.add_worker(worker)
        await rig.start_gateway()
        yield rig


def step_request(workflow_id: str, **fields: Any) -> workflow_pb2.SubmitStepRequest:
    request = workflow_pb2.SubmitStepRequest(
        workflow_id=workflow_id,
        agent_id="agent",
        prompt=types_pb2.Prompt(text="what comes next?"),
        sampling=types_pb2.Sampling(max_tokens=4, seed=5),
    )
    for name, value in fields.items():
        if hasattr(value, "DESCRIPTOR"):
            getattr(request, name).CopyFrom(value)
        elif isinstance(value, list):
            getattr(request, name).extend(value)
        else:
            setattr(request, name, value)
    return request


async def read(call: Any, answer: Answer | None = None) -> Answer:
    """All events of a call, each added to `answer` as it arrives."""
    answer = answer or Answer()
    async for event in call:
        answer.add(event)
    return answer


@asynccontextmanager
async def refused(code: grpc.StatusCode, details: str = "") -> AsyncIterator[None]:
    """The body's call must fail with that status, and with details that start like `details`."""
    with pytest.raises(aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    assert (caught.value.details() or "").startswith(details), caught.value.details()


@asynccontextmanager
async def connection(address: str, key: str) -> AsyncIterator[AsyncConnection]:
    """A client's connection that shows a key. One that is left open spoils the event loops of the tests that follow."""
    made = AsyncConnection(address, PATIENCE_S, Access(key))
    try:
        yield made
    finally:
        await made.close()
