"""What requests say, and what becomes of the chunks in vLLM's tier."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.integrations.kv_hints import HintMaker
from pbkv_cluster.integrations.vllm_policy.conversations import Conversations

from .stand_in import Context, Tier, key_of


def _named(workflow: str, agent: str = "a", **more: Any) -> dict[str, Any]:
    return {"pbkv": {"workflow": workflow, "agent": agent, "workload": "w", **more}}


def _loop(tier: Tier, workflows: int, rounds: int) -> int:
    """Workflows whose reader has one long context, and whose writer gets two prompts each turn that nobody reads again."""
    hits = 0
    for number in range(workflows):
        for turn in range(rounds):
            last = turn == rounds - 1
            hits += tier.request([f"{number}-context-{at}" for at in range(8)], _named(str(number), "reader"))
            for draft in (0, 1):
                scratch = [f"{number}-scratch-{turn}-{draft}-{at}" for at in range(8)]
                tier.request(scratch, _named(str(number), "writer", final=last and draft == 1))
    return hits


def test_it_learns_which_chunks_are_read_again() -> None:
    tier = Tier(20)
    _loop(tier, workflows=12, rounds=6)  # under LRU, the second draft pushes out half of the context each time
    assert tier.knowledge.learnt == 12
    assert _loop(tier, workflows=4, rounds=6) >= 0.9 * 4 * 5 * 8


def test_a_workflow_that_names_itself_ends_with_its_final_request() -> None:
    tier = Tier(30)
    tier.request(["a", "b"], _named("x"))
    tier.request(["a", "c"], _named("x", final=True))
    assert tier.knowledge.learnt == 1


def test_chunks_of_a_tier_with_room_for_all_stay() -> None:
    tier = Tier(40)
    for turn in range(5):
        for name in "xyz":
            assert tier.request([f"{name}{at}" for at in range(10)]) == (10 if turn else 0)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("x", "must be an object"),
        ({"workflow": 3}, "pbkv.workflow: must be a string"),
        ({"workflow": "x", "final": "yes"}, "pbkv.final: must be true or false"),
        ({"workflow": "x", "agnet": "y"}, "pbkv.agnet: is unknown"),
        ({"workflow": "x" * 5000}, "pbkv.workflow"),
    ],
)
def test_a_request_whose_names_cannot_be_read_is_served_without(
    given: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    tier = Tier(10)
    with caplog.at_level(logging.WARNING):
        tier.request(["a"], {"pbkv": given})
    assert problem in caplog.text
    assert tier.holds("a")


def _forecast(**fields: Any) -> Forecast:
    forecast = Forecast("trip", epoch=1, made_at=0.0, steps=(StepForecast({"writer": 1.0}, 0.9),), step=0)
    return replace(forecast, **fields)


def test_hints_name_the_workflow_and_carry_its_forecast() -> None:
    tier = Tier(10)
    tier.request(["a"], hints=HintMaker().envelope(_forecast()))
    assert tier.advisor.reference is not None
    applied = tier.advisor.reference.apply
    assert not applied(_forecast())  # it has this one, and knows the workflow:
    assert applied(_forecast(epoch=2))


def test_a_hint_that_the_session_has_ended_ends_the_workflow() -> None:
    tier = Tier(10)
    tier.request(["a"], _named("trip"))
    tier.request(["a"], hints=HintMaker().envelope(_forecast(epoch=3, steps=(), ended=True)))
    assert tier.knowledge.learnt == 1


def test_a_hint_that_cannot_be_read_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    tier, envelope = Tier(10), HintMaker().envelope(_forecast())
    envelope.actions[0].payload["steps"][0]["survival"] = 7
    tier.request(["a"], hints=envelope)
    assert "payload.steps[0]" in caplog.text


def test_a_conversation_is_recognised_by_the_prompt_that_it_continues() -> None:
    known = Conversations()
    first = known.workflow([b"s", b"u"])
    assert known.workflow([b"s", b"u", b"r", b"v"]) == first
    assert known.workflow([b"s", b"u", b"r", b"v", b"w"]) == first
    assert known.workflow([b"s", b"x"]) != first


def test_prompts_that_begin_alike_are_no_conversation() -> None:
    known = Conversations()
    first, second = known.workflow([b"s"]), known.workflow([b"s"])  # the same instruction, and a question of less than a chunk
    assert first != second
    assert known.workflow([b"s", b"a"]) not in (first, second)


def test_conversations_are_forgotten_beyond_the_bound() -> None:
    known = Conversations(capacity=2)
    first = known.workflow([b"a"])
    for other in (b"b", b"c"):
        known.workflow([other])
    assert known.workflow([b"a", b"d"]) != first


def test_chunks_that_are_stored_bit_by_bit_enter_the_reference_cache_as_they_are_stored() -> None:
    tier, keys = Tier(30), [key_of(f"p{at}") for at in range(6)]
    context = Context(_named("x", final=True))
    context.place(keys)
    for part in (keys[:2], keys[2:5]):
        tier.advisor.storing(part, context)
        assert tier.advisor.reference is not None
        tier.advisor.reference.check_integrity()
        assert tier.advisor.reference.chunks == (2 if part[0] is keys[0] else 5)
    tier.advisor.finished(keys[:5], context)
    assert tier.knowledge.learnt == 1


def test_after_a_reset_the_tier_is_filled_again() -> None:
    tier = Tier(8)
    tier.request(["a", "b"], _named("x"))
    tier.advisor.clear()
    assert not tier.holds("a")
    assert [tier.request(["a", "b"], _named("x")) for _ in range(2)] == [0, 2]
