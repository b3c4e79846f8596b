"""Who may take output straight from a worker: whoever shows a ticket that a gateway has passed on, once."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from pbkv_cluster.client import AsyncClient
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.security import Access
from pbkv_cluster.rpc.server import RpcServer
from pbkv_cluster.rpc.v1 import types_pb2, worker_pb2, worker_pb2_grpc, workflow_pb2
from tests.certificates import Authority
from tests.gateway.peers import ScriptedWorker
from tests.gateway.real_workers import real_workers
from tests.gateway.rig import PATIENCE_S, Rig, read, refused, running, step_request, until
from tests.gateway.straight import LONG, cluster, connected
from tests.secured import BLUE, OPERATOR, RED, secured


def _receiver(number: int = 1) -> types_pb2.Receiver:
    return types_pb2.Receiver(id=secrets.token_bytes(16), call=number)


async def _invitation(
    rig: Rig, workflow_id: str, receiver: types_pb2.Receiver, key: str = ""
) -> workflow_pb2.StepEvent.Invitation:
    """What a step that names a receiver is answered with; its output has come as well."""
    request = step_request(workflow_id, step_id=secrets.token_hex(8), receiver=receiver)
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    events = [event async for event in rig.stub.SubmitStep(request, timeout=PATIENCE_S, metadata=metadata)]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[:2] == ["accepted", "invitation"]
    assert kinds[-1] == "finished"
    return events[1].invitation


@asynccontextmanager
async def receiving(address: str, ticket: bytes, **access: Any) -> AsyncIterator[Any]:
    async with connect(address, access=Access(**access)) as channel:
        stream = worker_pb2_grpc.OutputServiceStub(channel).ReceiveOutput(timeout=PATIENCE_S)
        await stream.write(worker_pb2.ReceiveOutputRequest(ticket=ticket))
        try:
            yield aiter(stream)
        finally:
            await stream.done_writing()


async def _is_refused(address: str, ticket: bytes) -> None:
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "the ticket"), receiving(address, ticket) as responses:
        await anext(responses)


async def test_a_ticket_is_good_once_and_a_forged_one_never(small_model: Path) -> None:
    async with cluster(small_model) as (rig, _, _):
        workflow_id, receiver = await rig.start_workflow(), _receiver()
        invitation = await _invitation(rig, workflow_id, receiver)
        await _is_refused(invitation.address, secrets.token_bytes(16))
        async with receiving(invitation.address, invitation.ticket) as responses:
            assert (await anext(responses)).receiver == receiver.id
            await _is_refused(invitation.address, invitation.ticket)
            request = step_request(workflow_id, step_id="s", receiver=receiver)
            through = [event.WhichOneof("event") async for event in rig.stub.SubmitStep(request, timeout=PATIENCE_S)]
            assert through == ["handed_over"]
            straight = list[str | None]()
            while straight[-1:] != ["finished"]:
                straight += [event.event.WhichOneof("event") for event in (await anext(responses)).events]
            assert straight[0] == "accepted"


async def test_what_is_another_tenants_goes_to_no_receiver(small_model: Path, tmp_path: Path) -> None:
    with secured(tmp_path):
        async with cluster(small_model) as (rig, _, _):
            receiver = _receiver()
            async with AsyncClient(rig.address, api_key=RED) as red, AsyncClient(rig.address, api_key=BLUE) as blue:
                reds, blues = await red.start_workflow(), await blue.start_workflow()
                invitation = await _invitation(rig, reds.id, receiver, RED)
                async with receiving(invitation.address, invitation.ticket) as responses:
                    await anext(responses)
                    # Even one who knows the receiver's id is invited anew, and gets the output of steps of its own alone.
                    other = await _invitation(rig, blues.id, receiver, BLUE)
                    assert (invitation.tenant, other.tenant) == ("red", "blue")
                    async with receiving(other.address, other.ticket) as of_blue:
                        await anext(of_blue)
                        request = step_request(reds.id, step_id="s", receiver=receiver)
                        call = rig.stub.SubmitStep(request, metadata=(("authorization", f"Bearer {RED}"),))
                        assert [event.WhichOneof("event") async for event in call] == ["handed_over"]
                        assert (await anext(responses)).events
                        with pytest.raises(TimeoutError):
                            async with asyncio.timeout(0.2):
                                await anext(of_blue)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_clients_with_keys_get_their_output_straight(small_model: Path, tmp_path: Path, tls: bool) -> None:
    own = Authority(tmp_path).sign("member") if tls else None
    # With `tls_ca`, members ask each other for certificates. A client has none.
    settings = {"tls_certificate": own.certificate, "tls_key": own.key, "tls_ca": own.ca} if own else {}
    with secured(tmp_path, **settings):
        async with (
            cluster(small_model) as (rig, _, _),
            AsyncClient(rig.address, api_key=OPERATOR, tls_ca=own.ca if own else "") as client,
        ):
            for tenant in ("red", "blue"):
                workflow = await connected(rig, client, tenant)
                assert len((await workflow.run(**LONG)).token_ids) == 300


class _Impostor(worker_pb2_grpc.OutputServiceServicer):
    """What a client finds where it takes a worker to be."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []  # metadata of each call

    async def ReceiveOutput(  # noqa: N802
        self, requests: AsyncIterator[worker_pb2.ReceiveOutputRequest], context: Any
    ) -> AsyncIterator[worker_pb2.ReceiveOutputResponse]:
        self.shown.append(dict(context.invocation_metadata()))
        async for request in requests:
            yield worker_pb2.ReceiveOutputResponse(receiver=request.ticket)
            for call in range(100):
                finished = workflow_pb2.StepEvent.Finished(reason=types_pb2.FINISH_REASON_STOP)
                events = [worker_pb2.ReceiveOutputResponse.Event(call=call, event=workflow_pb2.StepEvent(finished=finished))]
                yield worker_pb2.ReceiveOutputResponse(events=events)


async def test_an_impostor_sees_no_key_and_is_not_believed(small_model: Path, tmp_path: Path) -> None:
    with secured(tmp_path):
        impostor, server = _Impostor(), RpcServer(asks_for_keys=False)
        descriptor = worker_pb2.DESCRIPTOR.services_by_name["OutputService"]
        server.add(descriptor, worker_pb2_grpc.add_OutputServiceServicer_to_server, impostor)
        address = await server.start("127.0.0.1", 0)

        async def elsewhere(_: str) -> str:
            return address

        try:
            async with (
                running() as rig,
                real_workers(rig, small_model, "a", reached_by=elsewhere),
                AsyncClient(rig.address, api_key=RED) as client,
            ):
                workflow = await client.start_workflow()
                steps = [await workflow.run(**LONG) for _ in range(3)]
                await until(lambda: bool(impostor.shown), "the client has followed the invitation")
                steps.append(await workflow.run(**LONG))
        finally:
            await server.stop(0)
        assert {len(step.token_ids) for step in steps} == {300}
        assert not any("authorization" in shown or RED in str(shown) for shown in impostor.shown)


async def test_a_receiver_needs_an_id_of_the_step_and_one_of_its_own(small_model: Path) -> None:
    async with cluster(small_model) as (rig, _, _):
        workflow_id = await rig.start_workflow()
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"receiver": _receiver()}, "step_id"),
            ({"receiver": types_pb2.Receiver(id=b"short"), "step_id": "s"}, "receiver.id"),
        ]
        for fields, problem in wrong:
            async with refused(grpc.StatusCode.INVALID_ARGUMENT, problem):
                await rig.run(workflow_id, **fields)


async def test_a_step_begins_after_those_that_its_client_knows_to_have_ended() -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with running(worker) as rig:
        workflow_id = await rig.start_workflow()
        first = rig.submit(workflow_id, step_id="first")
        await worker.stopped.wait()
        second = rig.submit(workflow_id, step_id="second", after=["first", "unknown"])
        third = rig.submit(workflow_id, step_id="third", agent_id="third")
        await until(lambda: len(worker.requests) > 1, "a step that waits for no other runs")
        assert [request.agent_id for request in worker.requests] == ["agent", "third"]
        worker.go.set()
        assert [(await read(call)).usage.generated_tokens for call in (first, second, third)] == [4, 4, 4]
        assert len(worker.requests) == 3
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "after: at most 64 steps"):
            await rig.run(workflow_id, after=[str(number) for number in range(65)])


async def test_steps_that_wait_for_others_count_as_well() -> None:
    worker = ScriptedWorker("w0", stop_at=1)
    async with running(worker, limits={"workflow_steps": 1}) as rig:
        workflow_id = await rig.start_workflow()
        first = rig.submit(workflow_id, step_id="first")
        await worker.stopped.wait()
        second = rig.submit(workflow_id, step_id="second", after=["first"])
        await rig.sees(lambda status: status.running_steps == 2, "a step that waits for the end of the one that counts")
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
            await rig.run(workflow_id, step_id="third", after=["first"])
        worker.go.set()
        assert [(await read(call)).usage.generated_tokens for call in (first, second)] == [4, 4]
