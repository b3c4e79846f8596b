"""What clients ask of the caches besides steps: prefetches and block leases, by real workers with a small model."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.client import AsyncClient, AsyncWorkflow, Client
from pbkv_cluster.client.store import StoreClient
from pbkv_cluster.core.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.gateway.step.admission.counted_prompts import CountedPrompts
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.store.fan_out import WorkersServicer
from tests.gateway.peers import ScriptedWorker
from tests.gateway.real_workers import SIZES, Real, real_workers
from tests.gateway.rig import Rig, connection, running, until
from tests.secured import BLUE, OPERATOR, RED, secured

PROMPT = list(range(5, 5 + 65))  # 4 blocks and a token
POOLS: dict[str, Any] = {"gpu_blocks": 40, "host_blocks": 200}


@asynccontextmanager
async def caches(folder: Path, *names: str) -> AsyncIterator[tuple[Rig, list[Real]]]:
    build(folder, "llama", **SIZES)
    async with running() as rig, real_workers(rig, folder, *(names or ("a",)), **POOLS) as workers:
        yield rig, workers


async def fill(client: AsyncClient, tenant: str = "", steps: int = 6) -> None:
    """Steps of a workflow that ends, with prompts of 13 blocks: more than the GPU has room for."""
    async with await client.start_workflow(tenant=tenant) as workflow:
        for number in range(steps):
            await workflow.run(agent="other", prompt=[7 + number] * 210, max_tokens=1)


async def decisions(rig: Rig) -> Mapping[str, int]:
    async with StoreClient(rig.address) as store:
        return dict((await store.stat()).decisions)


async def test_a_prompt_is_on_the_gpu_before_its_step(tmp_path: Path) -> None:
    async with caches(tmp_path) as (rig, _), AsyncClient(rig.address) as client:
        workflow = await client.start_workflow()
        await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
        await fill(client)
        done = await workflow.prefetch(PROMPT, within_s=60.0)
        assert (done.loaded_tokens, done.resident_tokens, done.tokens) == (64, 64, 64)
        assert sum(done.tiers.values()) == 64
        assert done.leased_tokens == 64
        assert (await workflow.prefetch(PROMPT, within_s=60.0)).leased_tokens == 64
        async with StoreClient(rig.address) as store:
            leases = (await store.stat()).leases
        assert leases.leases == 1, "the same prompt has the same lease"
        assert await client.release_blocks(done.lease_id, tenant=done.tenant) == 64
        assert await client.release_blocks(done.lease_id, tenant=done.tenant) == 0, "it has ended"
        assert (await workflow.prefetch(PROMPT)).lease_id == ""
        done = await workflow.prefetch(PROMPT, within_s=60.0)
        await fill(client)
        step = await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
        assert step.usage.delivered == {Tier.GPU: 64}
        unknown = await client.prefetch([4] * 40)
        assert (unknown.loaded_tokens, unknown.resident_tokens, unknown.tokens, unknown.tiers) == (0, 0, 32, {})


async def test_what_an_agent_has_used_is_prefetched(tmp_path: Path) -> None:
    async with caches(tmp_path) as (rig, _), AsyncClient(rig.address) as client:
        workflow = await client.start_workflow()
        await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
        await workflow.run(agent="coder", prompt=[3] * 97, max_tokens=1)
        await fill(client)
        assert (await workflow.prefetch(agent="nobody")).tokens == 0
        planner = await workflow.prefetch(agent="planner")
        assert (planner.loaded_tokens, planner.tokens) == (64, 64)
        everything = await workflow.prefetch()
        assert (everything.loaded_tokens, everything.resident_tokens, everything.tokens) == (96, 160, 160)


async def test_a_lease_keeps_blocks_until_it_is_released(tmp_path: Path) -> None:
    async with caches(tmp_path) as (rig, (worker,)), AsyncClient(rig.address) as client:
        workflow = await client.start_workflow()
        await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
        lease = await workflow.lease_blocks(PROMPT, lease_s=600.0)
        assert (lease.cached_tokens, lease.leased_tokens) == (64, 64)
        await fill(client)
        step = await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
        assert step.usage.delivered == {Tier.GPU: 64}, "they left the GPU"
        async with StoreClient(rig.address) as store:
            stat = (await store.stat()).leases
            assert (stat.leases, stat.leased_tokens, stat.limit_tokens) == (1, 64, 4 * 16)
            entries = (await store.list_cache(limit=100)).entries
            (leased,) = [entry for entry in entries if entry.leased_s]
            assert (leased.tokens, 0 < leased.leased_s <= 600.0) == (64, True)
            (block,) = (await store.explain_block(leased.name)).blocks
            assert block.run.leased_s > 0
        assert await lease.release() == 64
        assert await lease.release() == 0
        await fill(client)
        step = await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
        assert step.usage.delivered == {Tier.HOST: 64}
        found = await decisions(rig)
        assert (found["lease"], found["lease_released"]) == (4, 4)
        assert worker.server.figures is not None


@pytest.mark.parametrize(("kind", "method"), [(CountedPrompts, "read"), (WorkersServicer, "LeaseBlocks")])
async def test_no_lease_begins_once_its_workflow_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, method: str
) -> None:
    async with caches(tmp_path) as (rig, workers), AsyncClient(rig.address) as client:
        workflow = await client.start_workflow()
        await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
        begin = getattr(kind, method)

        async def end_meanwhile(*arguments: Any) -> Any:
            begun = await begin(*arguments)
            await workflow.end()
            return begun

        with monkeypatch.context() as patch:
            patch.setattr(kind, method, end_meanwhile)
            with pytest.raises(NotFound):
                await workflow.lease_blocks(PROMPT, lease_s=600.0)
        assert await workers[0].server.thread.call(lambda engine: len(engine.cache.leases)) == 0


async def test_leases_end_with_their_workflow(tmp_path: Path) -> None:
    async with caches(tmp_path, "a", "b") as (rig, workers), AsyncClient(rig.address) as client:
        async with await client.start_workflow() as workflow:
            await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
            async with await client.lease_blocks(PROMPT, lease_s=600.0) as lease:
                assert lease.leased_tokens == 64
            assert (await workflow.lease_blocks(PROMPT, lease_s=600.0)).leased_tokens == 64
        left = [await worker.server.thread.call(lambda engine: len(engine.cache.leases)) for worker in workers]
        assert left == [0, 0]
        found = await decisions(rig)
        assert (found["lease_released"], found["lease_ended_with_workflow"]) == (4, 4)


async def test_a_worker_with_a_lease_and_then_a_step_gets_the_forecasts_of_the_workflow(tmp_path: Path) -> None:
    async with caches(tmp_path) as (rig, _), AsyncClient(rig.address) as client:
        predictor = await rig.add_predictor()
        workflow = await client.start_workflow()
        await workflow.lease_blocks(PROMPT, lease_s=60.0)
        await workflow.prefetch(PROMPT, within_s=60.0)
        await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)

        def placed() -> list[str | None]:
            return [event.worker for event in predictor.of(workflow.id) if event.kind is EventKind.STEP_PLACED]

        await until(lambda: bool(placed()), "the predictor is told which worker is to have the forecasts")
        assert placed() == ["a"]


async def test_the_client_without_asyncio_asks_for_the_same(tmp_path: Path) -> None:
    def ask(address: str) -> None:
        with Client(address) as client, client.start_workflow() as workflow:
            workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
            with workflow.lease_blocks(PROMPT, lease_s=60.0) as lease:
                assert lease.leased_tokens == 64
            with client.lease_blocks(PROMPT, lease_s=60.0, lease_id="mine") as lease:
                assert (lease.leased_tokens, lease.id) == (64, "mine")
                assert client.release_blocks("mine") == 64
            assert workflow.prefetch(agent="planner").resident_tokens == 64
            assert client.prefetch(PROMPT).resident_tokens == 64

    async with caches(tmp_path) as (rig, _):
        await asyncio.to_thread(ask, rig.address)


def asks_of(workflow: AsyncWorkflow) -> list[Callable[[], Awaitable[Any]]]:
    return [workflow.prefetch, lambda: workflow.prefetch(PROMPT), lambda: workflow.lease_blocks(PROMPT, lease_s=60.0)]


async def test_a_lease_of_a_workflow_is_released_by_who_does_not_know_its_tenant(tmp_path: Path) -> None:
    async with caches(tmp_path) as (rig, _), AsyncClient(rig.address) as client, AsyncClient(rig.address) as other:
        workflow = await client.start_workflow(tenant="red")
        await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
        found = await other.start_workflow(workflow.id)
        lease = await found.lease_blocks(PROMPT, lease_s=60.0)
        assert (lease.tenant, lease.leased_tokens) == ("red", 64)
        assert await lease.release() == 64
        loaded = await found.prefetch(PROMPT, within_s=60.0)
        assert (loaded.tenant, loaded.leased_tokens) == ("red", 64)
        assert await other.release_blocks(loaded.lease_id, tenant=loaded.tenant) == 64


async def test_a_lost_worker_fails_no_lease(tmp_path: Path) -> None:
    async with caches(tmp_path) as (rig, _), AsyncClient(rig.address) as client:
        workflow = await client.start_workflow()
        await workflow.run(agent="planner", prompt=PROMPT, max_tokens=1)
        await rig.add_worker(ScriptedWorker("lost"), address="127.0.0.1:1")
        await rig.gateway.pool.refresh()
        lease = await workflow.lease_blocks(PROMPT, lease_s=60.0)
        assert lease.leased_tokens == 64
        assert await lease.release() == 64


async def test_a_tenant_has_its_own_leases_and_blocks(tmp_path: Path) -> None:
    with secured(tmp_path):
        async with (
            caches(tmp_path) as (rig, _),
            AsyncClient(rig.address, api_key=RED) as red,
            AsyncClient(rig.address, api_key=BLUE) as blue,
            AsyncClient(rig.address, api_key=OPERATOR) as operator,
            connection(rig.address, RED) as of_red,
            connection(rig.address, BLUE) as of_blue,
        ):
            workflow = await red.start_workflow("of-red")
            await workflow.run(agent="a", prompt=PROMPT, max_tokens=1)
            assert (await red.prefetch(PROMPT)).resident_tokens == 64
            assert (await operator.prefetch(PROMPT, tenant="red")).resident_tokens == 64
            assert (await blue.prefetch(PROMPT)).resident_tokens == 0
            lease = await workflow.lease_blocks(PROMPT, lease_s=60.0)
            assert lease.leased_tokens == 64
            assert (await blue.lease_blocks(PROMPT, lease_s=60.0, lease_id=lease.id)).leased_tokens == 0
            assert await blue.release_blocks(lease.id) == 0
            for refused in (
                blue.prefetch(PROMPT, tenant="red"),
                blue.lease_blocks(PROMPT, lease_s=60.0, tenant="red"),
                blue.release_blocks(lease.id, tenant="red"),
            ):
                with pytest.raises(PermissionDenied, match="another tenant than 'red'"):
                    await refused
            theirs = AsyncWorkflow(of_blue, "of-red", 60.0)
            for ask in asks_of(theirs):
                with pytest.raises(NotFound, match=r"workflow 'of-red@[0-9a-f]*' is not open"):
                    await ask()
            theirs = AsyncWorkflow(of_blue, workflow.id, 60.0)
            for ask in asks_of(theirs):
                with pytest.raises(NotFound, match=r"workflow 'of-red@.*' is not open"):
                    await ask()
            chosen = AsyncWorkflow(of_red, "of-red", 60.0)
            found = [await ask() for ask in asks_of(chosen)]
            assert [each.resident_tokens for each in found[:2]] == [64, 64], "by the id that its tenant has chosen"
            assert await lease.release() == 64


async def test_bad_requests_are_refused_by_name(tmp_path: Path) -> None:
    async with caches(tmp_path) as (rig, _), AsyncClient(rig.address) as client:
        async with await client.start_workflow() as workflow:
            for problem, request in (
                ("prompt: a prompt or a workflow_id must be set", client.prefetch()),
                (
                    "within_s: must be a finite number of seconds.* at most 3600",
                    client.prefetch("a", within_s=-1),
                ),
                ("within_s: must be a finite", client.prefetch("a", within_s=math.nan)),
                ("within_s: needs a prompt", workflow.prefetch(within_s=5.0)),
                ("agent_id: chooses among what a workflow has used", workflow.prefetch("a", agent="b")),
                ("agent_id: at most 256 bytes", workflow.prefetch(agent="b" * 257)),
                ("tenant: at most 256 bytes", client.prefetch("a", tenant="t" * 257)),
                ("prefetch: ", client.prefetch("a", within_s="soon")),  # type: ignore[arg-type]
                ("lease_s: must be more than 0", client.lease_blocks("a", lease_s=0.0)),
                (
                    "lease_s: must be a finite number of seconds.* at most 3600",
                    workflow.lease_blocks("a", lease_s=3601),
                ),
                ("lease: ", client.lease_blocks("a", lease_s="long")),  # type: ignore[arg-type]
                ("lease_id: at most 256 bytes", client.lease_blocks("a", lease_s=1.0, lease_id="b" * 257)),
                ("lease_id: must not be empty", client.release_blocks("")),
                ("prompt.text: must hold at least one token", client.lease_blocks("", lease_s=1.0)),
            ):
                with pytest.raises(InvalidArgument, match=problem):
                    await request
        with pytest.raises(NotFound, match="is not open"):
            await workflow.prefetch()
        with pytest.raises(NotFound, match="is not open"):
            await workflow.lease_blocks("a", lease_s=1.0)


async def test_without_a_worker_nothing_is_leased() -> None:
    async with running() as rig, AsyncClient(rig.address) as client:
        with pytest.raises(Unavailable, match="there is no worker"):
            await client.lease_blocks("a", lease_s=1.0)
