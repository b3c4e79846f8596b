"""What a step holds is free once it is over, without a garbage collection: full ones are rare in a process that serves."""

import asyncio
import gc
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from pbkv_cluster.gateway.step.step import Step
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2
from tests.gateway.peers import ScriptedWorker, answer_tokens
from tests.gateway.rig import PATIENCE_S, read, running, step_request
from tests.polling import eventually


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    logging.disable()  # pytest keeps what is logged, the errors included
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


def steps_in_memory() -> int:
    return sum(type(each) is Step for each in gc.get_objects())


@pytest.mark.parametrize("step_id", ["", "same"])
@pytest.mark.parametrize(
    ("code", "fields"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, {}),
        (grpc.StatusCode.UNAVAILABLE, {}),
        (None, {}),
        (None, {"workflow_id": "none"}),
    ],
)
async def test_a_step_that_is_over_leaves_nothing(code: grpc.StatusCode | None, fields: dict[str, Any], step_id: str) -> None:
    async with running(ScriptedWorker("w0", fail_with=code)) as rig:
        step = step_request(**{"workflow_id": await rig.start_workflow(), "step_id": step_id, **fields})
        stream: Any = rig.stub.SubmitSteps()
        for number in range(3):
            request = workflow_pb2.SubmitStepsRequest()
            request.actions.add(call=number).begin.step.CopyFrom(step)
            await stream.write(request)
            ends = list[types_pb2.CallEnd]()
            async with asyncio.timeout(PATIENCE_S):
                while not ends:
                    ends += [event.end for event in (await stream.read()).events if event.HasField("end")]
            assert (ends[0].code == 0) is (code is None and not fields)
        await eventually(lambda: steps_in_memory() == 0, 2.0, lambda: f"{steps_in_memory()} steps are kept")
        stream.cancel()


async def test_a_call_of_its_own_leaves_nothing() -> None:
    async with running(ScriptedWorker("w0")) as rig:
        await rig.run(await rig.start_workflow())
        await eventually(lambda: steps_in_memory() == 0, 2.0, lambda: "the step is kept")


async def test_a_step_that_its_client_has_left_keeps_its_output_alone() -> None:
    worker = ScriptedWorker("w0", stop_at=2)
    async with running(worker) as rig:
        workflow = await rig.start_workflow()
        call = rig.submit(workflow, step_id="same", sampling=types_pb2.Sampling(max_tokens=8, seed=5))
        reading = asyncio.ensure_future(read(call))
        await worker.stopped.wait()
        call.cancel()
        await asyncio.wait({reading})
        await eventually(lambda: steps_in_memory() == 0, 2.0, lambda: f"{steps_in_memory()} steps are kept")
        worker.go.set()
        answer = await rig.run(workflow, step_id="same", sampling=types_pb2.Sampling(max_tokens=8, seed=5))
        assert answer.token_ids == answer_tokens(types_pb2.Sampling(max_tokens=8, seed=5))
        assert (await rig.status()).decisions["step_resumed"] == 1
