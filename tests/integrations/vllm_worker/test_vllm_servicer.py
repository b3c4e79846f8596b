"""The worker's services over gRPC, in front of an engine with vLLM's contract: a gateway sees no difference."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.locations.residency import NOWHERE, Residency
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.integrations.vllm_worker.figures import VllmFigures
from pbkv_cluster.integrations.vllm_worker.servicer import VllmServicer
from pbkv_cluster.integrations.vllm_worker.store_servicer import VllmStoreServicer
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, types_pb2, worker_pb2, worker_pb2_grpc
from pbkv_cluster.store.kv_events.messages import BlockRemoved
from tests.gpu_worker.worker_rig import packed
from tests.integrations.vllm_worker.scripted import NAMESPACE, SHAPE, Rig, ScriptedEngine, stored
from tests.polling import eventually

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.store_pb2_grpc import StoreServiceAsyncStub
    from pbkv_cluster.rpc.v1.worker_pb2_grpc import WorkerServiceAsyncStub

PATIENCE_S = 30.0
PROMPT = list(range(100))


@dataclass
class Served:
    """A worker and a channel to it."""

    rig: Rig
    stub: "WorkerServiceAsyncStub"
    store: "StoreServiceAsyncStub"


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    rig = Rig(ScriptedEngine(cached=64))
    engine, held = rig.engine, rig.held
    servicer = VllmServicer(rig.steps, engine, held, rig.hints, None, NAMESPACE, "worker-0", SystemClock())
    server = RpcServer()
    descriptors = worker_pb2.DESCRIPTOR.services_by_name, store_pb2.DESCRIPTOR.services_by_name
    server.add(descriptors[0]["WorkerService"], worker_pb2_grpc.add_WorkerServiceServicer_to_server, servicer)
    server.add(
        descriptors[1]["StoreService"], store_pb2_grpc.add_StoreServiceServicer_to_server, VllmStoreServicer(engine, held)
    )
    server.before_stop(servicer.step_calls.finish)
    address = await server.start("127.0.0.1", 0)
    async with connect(address) as channel:
        yield Served(rig, worker_pb2_grpc.WorkerServiceStub(channel), store_pb2_grpc.StoreServiceStub(channel))
    await server.stop()


def request(**sampling: object) -> worker_pb2.RunStepRequest:
    found = worker_pb2.RunStepRequest(
        request_id="r", workflow_id="w", agent_id="a", prompt=packed(PROMPT), tenant="tenant", remote_after=-1
    )
    found.sampling.CopyFrom(types_pb2.Sampling(**{"max_tokens": 4, "top_p": 1.0, **sampling}))  # type: ignore[arg-type]
    return found


async def test_a_step_streams_tokens_text_and_its_usage(served: Served) -> None:
    served.rig.held.stored(stored(PROMPT[:64], [b"one", b"two"], salt="tenant"))
    events = [event async for event in served.stub.RunStep(request(), timeout=PATIENCE_S)]
    assert "".join(event.tokens.text for event in events) == "abcd"
    finished = events[-1].finished
    assert finished.reason == types_pb2.FINISH_REASON_LENGTH
    assert [(each.tier, each.tokens) for each in finished.usage.delivered] == [(types_pb2.TIER_GPU, 64)]
    assert (finished.usage.prompt_tokens, finished.usage.computed_tokens, finished.hidden) == (100, 36, b"")
    assert served.rig.engine.requests[0].salt == "tenant"


async def test_many_steps_share_one_stream_and_one_of_them_can_be_cancelled(served: Served) -> None:
    served.rig.engine.may_go_on.clear()
    call = served.stub.RunSteps(timeout=PATIENCE_S)
    begin = worker_pb2.RunStepsRequest.Begin(step=request())
    actions = [worker_pb2.RunStepsRequest.Action(call=number, begin=begin) for number in (1, 2)]
    await call.write(worker_pb2.RunStepsRequest(actions=actions))
    await eventually(lambda: len(served.rig.engine.requests) == 2)
    cancel = worker_pb2.RunStepsRequest.Action(call=1, cancel=types_pb2.CallCancel())
    await call.write(worker_pb2.RunStepsRequest(actions=[cancel]))
    await eventually(lambda: len(served.rig.engine.closed) == 1)
    served.rig.engine.may_go_on.set()
    await call.done_writing()
    events = [event async for response in call for event in response.events]
    ends = {event.call: event.end.code for event in events if event.WhichOneof("what") == "end"}
    assert sorted(ends) == [1, 2]
    assert ends[1] != ends[2] == 0


async def test_a_step_that_passes_its_deadline_ends_in_vllm(served: Served) -> None:
    served.rig.engine.may_go_on.clear()
    call = served.stub.RunSteps(timeout=PATIENCE_S)
    begin = worker_pb2.RunStepsRequest.Begin(step=request(), timeout_s=0.05)
    await call.write(worker_pb2.RunStepsRequest(actions=[worker_pb2.RunStepsRequest.Action(call=1, begin=begin)]))
    await call.done_writing()
    ends = [event.end.code for response in [each async for each in call] for event in response.events if event.HasField("end")]
    assert ends == [grpc.StatusCode.DEADLINE_EXCEEDED.value[0]]
    assert len(served.rig.engine.closed) == 1


async def test_a_call_that_is_cancelled_ends_in_vllm(served: Served) -> None:
    served.rig.engine.may_go_on.clear()
    call = served.stub.RunStep(request(), timeout=PATIENCE_S)
    await call.read()
    call.cancel()
    await eventually(lambda: bool(served.rig.engine.closed or served.rig.engine.aborted))


async def test_errors_name_their_field(served: Served) -> None:
    forced = request(forced_output=packed([1, 2]))
    with pytest.raises(aio.AioRpcError) as caught:
        await served.stub.RunStep(forced, timeout=PATIENCE_S).read()
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert str(caught.value.details()).startswith("sampling.forced_output: ")


async def test_the_status_has_what_vllm_tells_and_nothing_else(served: Served) -> None:
    served.rig.held.stored(stored(PROMPT[:64], [b"one", b"two"]))
    status = await served.stub.GetWorkerStatus(worker_pb2.GetWorkerStatusRequest(), timeout=PATIENCE_S)
    (tier,) = status.store.tiers
    assert (tier.tier, tier.used_blocks, tier.capacity_blocks, tier.block_bytes) == (types_pb2.TIER_GPU, 4, 128, 2048)
    assert not tier.HasField("locked_blocks")
    assert not any(status.store.HasField(name) for name in ("guard", "prefetch"))
    assert not any(status.HasField(name) for name in ("access_updates_applied", "access_workflows"))
    assert (status.store.policy, status.predictor_reachable) == ("vllm", False)


async def test_the_metrics_have_what_vllm_tells_and_nothing_else(served: Served) -> None:
    rig = served.rig
    rig.held.stored(stored(PROMPT[:64], [b"one", b"two"]))
    figures = Figures()
    await VllmFigures(rig.steps, rig.engine, rig.held, rig.hints, None, tuple, SystemClock()).put(figures)
    text = figures.text().decode()
    assert 'pbkv_tier_used_bytes{tier="gpu"} 8192' in text
    assert not any(absent in text for absent in ("guard", "locked", "waiting_tokens", "predictor_reachable"))
    unknown = ScriptedEngine(shape=replace(SHAPE, block_bytes=0))
    figures = Figures()
    await VllmFigures(rig.steps, unknown, rig.held, rig.hints, None, tuple, SystemClock()).put(figures)
    assert "pbkv_tier" not in figures.text().decode()


async def test_the_blocks_are_listed_as_the_index_has_them(served: Served) -> None:
    served.rig.held.stored(stored(PROMPT[:96], [b"one", b"two", b"three"]))
    served.rig.held.removed(BlockRemoved([b"three"], "GPU"))
    pages = [page async for page in served.stub.ListBlocks(worker_pb2.ListBlocksRequest(), timeout=PATIENCE_S)]
    keys = block_keys(NAMESPACE, pack(PROMPT))[:4]
    assert b"".join(page.keys for page in pages) == b"".join(keys)
    assert {each for page in pages for each in page.residencies} == {Residency(frozenset([Tier.GPU])).pack()}
    found = await served.stub.FindUnbacked(pages[0], timeout=PATIENCE_S)
    assert not found.keys


async def test_operators_learn_what_vllm_cannot_tell(served: Served) -> None:
    served.rig.held.stored(stored(PROMPT[:64], [b"one", b"two"]))
    assert (await served.store.Clear(store_pb2.ClearRequest(), timeout=PATIENCE_S)).dropped_blocks == 4
    # vLLM tells of it only with the next request.
    assert (len(served.rig.held), served.rig.changes[4:]) == (0, [(key, NOWHERE) for key, _ in served.rig.changes[:4]])
    assert (await served.store.Clear(store_pb2.ClearRequest(), timeout=PATIENCE_S)).dropped_blocks == 0
    assert (await served.store.CheckCache(store_pb2.CheckCacheRequest(), timeout=PATIENCE_S)).checked_blocks == 0
    served.rig.engine.clears = False
    served.rig.held.stored(stored(PROMPT[:32], [b"one"]))
    for answer, why in (
        (served.store.Clear(store_pb2.ClearRequest(), timeout=PATIENCE_S), "while it runs no step"),
        (served.store.ListCache(store_pb2.ListCacheRequest(), timeout=PATIENCE_S), "which workflows use its blocks"),
        (served.store.ExplainCache(store_pb2.ExplainCacheRequest(), timeout=PATIENCE_S), "why it keeps a block"),
        (served.store.Prefetch(store_pb2.PrefetchRequest(), timeout=PATIENCE_S), "nothing ahead of its use"),
    ):
        with pytest.raises(aio.AioRpcError, match=why) as caught:
            await answer
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert len(served.rig.held) == 2


async def test_what_our_engine_learns_from_is_heard(served: Served) -> None:
    told = await served.stub.TellSteps(worker_pb2.TellStepsRequest(workflow_id="w", after=-1), timeout=PATIENCE_S)
    assert told.heard
    await served.stub.RetireWorkflow(worker_pb2.RetireWorkflowRequest(workflow_id="w"), timeout=PATIENCE_S)


def test_the_gateway_calls_nothing_that_the_worker_does_not_serve() -> None:
    methods = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"].methods_by_name
    assert set(methods) <= vars(VllmServicer).keys()
    stores = store_pb2.DESCRIPTOR.services_by_name["StoreService"].methods_by_name
    assert set(stores) <= vars(VllmStoreServicer).keys()
