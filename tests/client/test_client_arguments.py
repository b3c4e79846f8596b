"""Keyword arguments that a call does not have are refused by the call itself, in both clients."""

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from pbkv_cluster.client import AsyncClient, AsyncWorkflow, Client, StepOptions, Workflow
from pbkv_cluster.core.errors import InvalidArgument, PbkvError
from pbkv_cluster.rpc.v1 import workflow_pb2_grpc

NOBODY = "127.0.0.1:1"  # what is refused is refused before a gateway is asked
CALLS = ["run", "stream"]


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(NOBODY) as made:
        yield made


@pytest.fixture
async def aio_client() -> AsyncIterator[AsyncClient]:
    async with AsyncClient(NOBODY) as made:
        yield made


@pytest.fixture(params=["sync", "aio"])
def workflow(request: pytest.FixtureRequest) -> Any:
    stub: Any = workflow_pb2_grpc.WorkflowServiceStub
    return {"sync": Workflow, "aio": AsyncWorkflow}[request.param](stub, "w", 1.0)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("max_new_tokens", "max_tokens"),
        ("max_completion_tokens", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("temprature", "temperature"),
        ("stop_token_ids", "stop"),
        ("top_k", "top_p"),
        ("timeout", "timeout_s"),
        ("parent", "parent_step"),
        ("agent_id", "agent"),
        ("messages", "prompt"),
        ("lease_s", None),  # of another call
        ("logprobs", "top_logprobs"),
        ("", None),
    ],
)
def test_an_unknown_option_is_refused_by_name(workflow: Any, call: str, option: str, nearest: str | None) -> None:
    with pytest.raises(TypeError) as caught:
        getattr(workflow, call)(agent="a", prompt="p", **{option: 1})
    message = str(caught.value)
    assert f"{call}() has no argument {option!r}: " in message
    assert f"nearest that it has is {nearest!r}" in message if nearest else "nothing like it" in message
    assert all(name in message for name in StepOptions.__annotations__)


def test_an_unknown_argument_of_a_tool_call_is_refused(workflow: Any) -> None:
    with pytest.raises(TypeError, match=r"tool\(\) has no argument 'expected': .* 'expected_s'"):
        workflow.tool("search", expected=3.0)


@pytest.mark.parametrize("kind", ["client", "aio_client"])
def test_an_unknown_argument_of_a_workflow_is_refused(kind: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(kind)
    with pytest.raises(TypeError, match=r"start_workflow\(\) has no argument 'lease': .* 'lease_s'"):
        made.start_workflow(lease=3.0)
    with pytest.raises(TypeError, match=r"no argument 'session_id': .* 'workflow_id'"):
        made.start_workflow(session_id="s")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_unknown_argument_of_a_client_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"__init__\(\) has no argument 'timeout'"):
        kind(NOBODY, timeout=3.0)


@pytest.mark.parametrize(("kind", "aio"), [(Client, AsyncClient), (Workflow, AsyncWorkflow)])
def test_both_clients_have_the_same_calls_and_all_check_their_arguments(kind: Any, aio: Any) -> None:
    def calls(owner: Any) -> dict[str, list[str]]:
        public = {name: each for name, each in vars(owner).items() if not name.startswith("_") and callable(each)}
        return {name: list(inspect.signature(each).parameters) for name, each in public.items()}

    assert calls(kind) == calls(aio)
    for owner in (kind, aio):
        for name, parameters in calls(owner).items():
            with pytest.raises(TypeError, match="no argument" if len(parameters) > 1 else "unexpected keyword argument"):
                getattr(owner, name)(None, no_such_argument=1)


@pytest.mark.parametrize("arguments", [{"workload": 3}, {"lease_s": "long"}, {"workflow_id": None, "tenant": b"\xff"}])
def test_a_workflow_that_does_not_fit_the_wire_is_refused(client: Client, arguments: Any) -> None:
    with pytest.raises(InvalidArgument):
        client.start_workflow(**arguments)
    with pytest.raises(InvalidArgument):
        client.start_workflow(step_graph={"a": ["b"]})  # type: ignore[arg-type]


def test_known_arguments_reach_the_gateway(client: Client) -> None:
    with pytest.raises(PbkvError, match=NOBODY):
        client.start_workflow("w", workload="trips", lease_s=3.0)
