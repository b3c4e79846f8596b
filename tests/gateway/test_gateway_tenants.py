"""API keys at the gateway: each tenant sees its own workflows and blocks, and nothing of others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio

from pbkv_cluster.client import AsyncClient, AsyncWorkflow
from pbkv_cluster.client.inspection import InspectionClient
from pbkv_cluster.core.errors import NotFound, PermissionDenied, Unauthenticated
from pbkv_cluster.rpc.security import Access, set_up_access
from pbkv_cluster.rpc.v1 import workflow_pb2, workflow_pb2_grpc
from tests.certificates import Authority
from tests.gateway.pair import pair
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import Rig, connection, refused, running, until
from tests.polling import eventually
from tests.secured import BLUE, OPERATOR, RED, secured

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.workflow_pb2_grpc import WorkflowServiceAsyncStub


@asynccontextmanager
async def keyed(folder: Path, **settings: str | bool) -> AsyncIterator[tuple[Rig, ScriptedWorker]]:
    with secured(folder, **settings):
        worker = ScriptedWorker("w0")
        async with running(worker) as rig:
            yield rig, worker


async def test_a_key_decides_the_tenant_of_blocks(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, worker):
        for key, asked, tenant in ((RED, "", "red"), (RED, "red", "red"), (BLUE, "", "blue"), (OPERATOR, "green", "green")):
            async with AsyncClient(rig.address, api_key=key) as client:
                await (await client.start_workflow(tenant=asked)).run(agent="a", prompt="hello", max_tokens=2)
            assert worker.requests[-1].tenant == tenant


async def test_nobody_gets_in_without_a_key(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, _):
        for key, problem in (("x" * 30, "not known"), ("", "needed")):
            set_up_access(Access())
            async with AsyncClient(rig.address, api_key=key) as client:
                with pytest.raises(Unauthenticated, match=problem):
                    await client.status()
                with pytest.raises(Unauthenticated, match=problem):
                    await client.start_workflow()


async def test_a_key_that_is_withdrawn_begins_no_more_steps_on_a_stream_that_is_open(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, worker), AsyncClient(rig.address, api_key=RED) as red:
        worker.stop_at = 1
        workflow = await red.start_workflow()
        running_step = asyncio.create_task(workflow.run(agent="a", prompt="hello", max_tokens=4))
        await worker.stopped.wait()
        (tmp_path / "keys.yaml").write_text(f"[{{key: {OPERATOR}, operator: true}}]")

        async def is_refused() -> bool:
            try:
                async with asyncio.timeout(0.5):
                    await workflow.run(agent="a", prompt="hello", max_tokens=4)
            except (Unauthenticated, TimeoutError) as error:
                return isinstance(error, Unauthenticated)
            return False

        await eventually(is_refused)
        worker.go.set()
        assert len((await running_step).token_ids) == 4, "what has begun goes on"


async def test_a_tenant_cannot_touch_anothers_workflow(tmp_path: Path) -> None:
    async with (
        keyed(tmp_path) as (rig, worker),
        AsyncClient(rig.address, api_key=RED) as red,
        AsyncClient(rig.address, api_key=BLUE) as blue,
        connection(rig.address, BLUE) as link,
    ):
        mine = await red.start_workflow("mine")
        await mine.run(agent="a", prompt="hello", max_tokens=2)
        before = len(worker.requests)
        for name in ("mine", mine.id):  # its id is all that it takes
            theirs = AsyncWorkflow(link, name, 60.0)
            with pytest.raises(NotFound, match="is not open: it was never started"):
                await theirs.run(agent="a", prompt="hello", max_tokens=2)
            with pytest.raises(NotFound):
                async with theirs.tool("search"):
                    pass
            with pytest.raises(NotFound):
                await theirs.end()
        with pytest.raises(PermissionDenied, match="another tenant than 'red'"):
            await blue.start_workflow("mine", tenant="red")
        assert len(worker.requests) == before
        await mine.run(agent="a", prompt="hello again", max_tokens=2)
        await mine.end()


async def test_two_tenants_that_choose_the_same_id_have_two_workflows(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, worker):
        predictor = await rig.add_predictor()
        async with AsyncClient(rig.address, api_key=RED) as red, AsyncClient(rig.address, api_key=BLUE) as blue:
            of_red, of_blue = await red.start_workflow("same"), await blue.start_workflow("same")
            assert len({"same", of_red.id, of_blue.id}) == 3
            for workflow in (of_red, of_blue):  # a step with an id runs once for each of them
                await workflow.run(agent="a", prompt="hello", max_tokens=2, step_id="one")
            assert [(each.workflow_id, each.tenant) for each in worker.requests] == [(of_red.id, "red"), (of_blue.id, "blue")]
            await of_red.end()
            async with connection(rig.address, BLUE) as link:
                await AsyncWorkflow(link, "same", 60.0).run(agent="a", prompt="hello again", max_tokens=2)
        await until(lambda: len(predictor.events) >= 9, f"the predictor is told of all: {predictor.events}")
        assert {event.workflow for event in predictor.events} == {of_red.id, of_blue.id}
        assert worker.retired == [of_red.id]
        set_up_access(Access(OPERATOR))
        async with InspectionClient(rig.address) as inspection:
            assert [each.workflow_id for each in (await inspection.workflows()).workflows] == [of_blue.id]


async def test_a_gateway_that_starts_again_keeps_tenants_apart(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, _):
        async with AsyncClient(rig.address, api_key=RED) as red:
            mine = await red.start_workflow("mine")
            await mine.run(agent="a", prompt="hello", max_tokens=2)
            await rig.recorded(mine.id, 1)
        await rig.restart_gateway()
        async with AsyncClient(rig.address, api_key=BLUE) as blue:
            assert (await blue.start_workflow("mine")).id != mine.id
        async with AsyncClient(rig.address, api_key=RED) as red:
            found = await red.start_workflow("mine")
            assert found.id == mine.id
            await found.end()


async def test_what_concerns_all_tenants_is_for_operators(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (rig, _):
        async with AsyncClient(rig.address, api_key=RED) as red:
            with pytest.raises(PermissionDenied, match="GetClusterStatus needs the API key of an operator"):
                await red.status()
        set_up_access(Access(RED))
        async with InspectionClient(rig.address) as inspection:
            with pytest.raises(PermissionDenied):
                await inspection.workflows()
        async with AsyncClient(rig.address, api_key=OPERATOR) as operator:
            assert len((await operator.status()).workers) == 1


async def test_a_client_trusts_what_it_is_told_to(tmp_path: Path) -> None:
    own = Authority(tmp_path).sign("gateway")
    async with keyed(tmp_path, tls_certificate=own.certificate, tls_key=own.key, tls_ca=own.ca) as (rig, worker):
        async with AsyncClient(rig.address, api_key=RED, tls_ca=own.ca) as client:
            await (await client.start_workflow()).run(agent="a", prompt="hello", max_tokens=2)
        assert worker.requests[-1].tenant == "red", "gateway and worker have met over TLS, too"


async def test_without_credentials_nothing_has_changed(tmp_path: Path) -> None:
    async with running(ScriptedWorker("w0")) as rig, AsyncClient(rig.address, api_key=RED) as client:
        await (await client.start_workflow("w", tenant="any")).run(agent="a", prompt="hello", max_tokens=2)
        assert await rig.start_workflow(workflow_id="w") == "w"
        assert (await rig.status()).open_workflows == 2


async def test_a_tenant_is_the_same_at_every_gateway(tmp_path: Path) -> None:
    worker = ScriptedWorker("w0")
    with secured(tmp_path):
        async with (
            pair(worker) as both,
            AsyncClient(both.a.address, api_key=RED) as red_at_a,
            AsyncClient(both.b.address, api_key=RED) as red_at_b,
            connection(both.b.address, BLUE) as link,
        ):
            await (await red_at_a.start_workflow("mine")).run(agent="a", prompt="hello", max_tokens=2)
            await (await red_at_b.start_workflow("mine")).run(agent="a", prompt="hello again", max_tokens=2)
            assert [request.tenant for request in worker.requests] == ["red", "red"]
            theirs = AsyncWorkflow(link, "mine", 60.0)
            with pytest.raises(NotFound):
                await theirs.run(agent="a", prompt="hello", max_tokens=2)
            with pytest.raises(NotFound):
                await theirs.end()


@pytest.mark.parametrize(("key", "tenant"), [(OPERATOR, "blue"), (BLUE, "red")], ids=["passed on", "forged"])
async def test_a_call_that_is_passed_on_runs_for_who_has_made_it(tmp_path: Path, key: str, tenant: str) -> None:
    async with keyed(tmp_path) as (rig, _), AsyncClient(rig.address, api_key=RED) as red:
        mine = await red.start_workflow("mine")
        metadata = (("authorization", f"Bearer {key}"), ("pbkv-passed-on", "1"), ("pbkv-tenant-bin", tenant.encode()))
        async with aio.insecure_channel(rig.address) as channel:
            stub: WorkflowServiceAsyncStub = workflow_pb2_grpc.WorkflowServiceStub(channel)
            async with refused(grpc.StatusCode.NOT_FOUND):
                await stub.EndWorkflow(workflow_pb2.EndWorkflowRequest(workflow_id="mine"), metadata=metadata)
        await mine.run(agent="a", prompt="still open", max_tokens=2)
