"""Events of a step on the wire."""

import pytest

from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.core.workflow.step_events import Accepted, Finished, FinishReason, StepEvent, Tokens
from pbkv_cluster.rpc.convert import step_event_from_wire, step_event_to_wire
from pbkv_cluster.rpc.v1 import types_pb2, workflow_pb2

EVENTS: list[StepEvent] = [
    Accepted(7, "w0", 12),
    Tokens(pack([1, 2]), "ab"),
    Tokens(b"", "c"),
    Tokens(pack([1, 2]), "d", (TokenLogprobs(-0.5, ((1, -0.25), (3, -2.0))), TokenLogprobs(-1.0))),
    *(Finished(reason, Usage(prompt_tokens=3, captured={Tier.HOST: 16}, worker_id="w1")) for reason in FinishReason),
]


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_an_event_comes_back_as_it_was_sent(event: StepEvent) -> None:
    assert step_event_from_wire(step_event_to_wire(event)) == event


def test_every_finish_reason_of_the_wire_is_known() -> None:
    for name in types_pb2.FinishReason.keys():  # noqa: SIM118  # not a mapping
        event = step_event_from_wire(workflow_pb2.StepEvent(finished=workflow_pb2.StepEvent.Finished(reason=name)))
        assert isinstance(event, Finished)
        assert name == f"FINISH_REASON_{event.reason.name}"


def test_an_event_of_an_unknown_kind_is_none() -> None:
    assert step_event_from_wire(workflow_pb2.StepEvent()) is None
