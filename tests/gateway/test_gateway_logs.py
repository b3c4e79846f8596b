"""What the gateway logs of steps: workflow, step and reason; of prompts nothing, unless it is told to."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from pbkv_cluster.core.config import LoggingConfig
from pbkv_cluster.core.logs.setup import set_up_logs
from pbkv_cluster.rpc.v1 import types_pb2
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import refused, running

SECRET = "the launch code is swordfish"
PROMPT = types_pb2.Prompt(text=SECRET)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where this process logs to, debug records included."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    written = io.StringIO()
    set_up_logs(LoggingConfig(format="json", level="debug"), "gateway", written)
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_a_failed_step_is_logged_with_its_workflow_and_reasons(stream: io.StringIO) -> None:
    async with running(ScriptedWorker("w0", fail_with=grpc.StatusCode.INTERNAL)) as rig:
        workflow = await rig.start_workflow()
        async with refused(grpc.StatusCode.INTERNAL):
            await rig.run(workflow, prompt=PROMPT)
        found = {record["reason"]: record for record in records(stream) if "reason" in record}
    assert found.keys() == {"worker_lost", "step_failed"}
    assert found["worker_lost"]["worker"] == "w0"
    for record in found.values():
        assert (record["workflow"], record["step"], record["agent"]) == (workflow, 0, "agent")
        assert (record["level"], record["member"]) == ("warning", "gateway")


async def test_no_word_of_a_prompt_is_logged(stream: io.StringIO) -> None:
    async with running(ScriptedWorker("w0")) as rig:
        workflow = await rig.start_workflow()
        await rig.run(workflow, prompt=PROMPT)
        messages = types_pb2.ChatMessages(messages=[types_pb2.ChatMessage(role="user", content=SECRET)])
        await rig.run(workflow, prompt=types_pb2.Prompt(messages=messages))
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await rig.run(workflow, prompt=types_pb2.Prompt(text=f"{SECRET} " * 100_000))
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await rig.run(workflow, prompt=PROMPT, sampling=types_pb2.Sampling(max_tokens=-1))
    assert records(stream), "nothing was logged at all"
    assert "swordfish" not in stream.getvalue()


async def test_prompts_are_logged_where_that_is_switched_on(stream: io.StringIO) -> None:
    async with running(ScriptedWorker("w0"), logging={"prompts": True}) as rig:
        await rig.run(await rig.start_workflow(), prompt=PROMPT)
    assert [record["prompt"] for record in records(stream) if "prompt" in record] == [SECRET]
