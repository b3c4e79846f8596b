"""One step in the hand: its states, and the text that its client gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.text.words import TEXT_CHARACTERS
from pbkv_cluster.core.workflow.step_events import Tokens
from pbkv_cluster.gateway.step.state import NEXT_STATES, IllegalTransition, StepState
from pbkv_cluster.gateway.step.step import Step

FINAL = {StepState.FINISHED, StepState.FAILED, StepState.CANCELLED}


def new_step() -> tuple[Step, list[StepState]]:
    """A step, and the final states that it has reported."""
    reported: list[StepState] = []
    return Step(0.0, lambda step: reported.append(step.state)), reported


def test_the_table_of_the_docstring_is_the_table_of_the_code() -> None:
    rows = {}
    for line in (StepState.__doc__ or "").splitlines():
        words = line.split()
        if words and words[0] in set(StepState) and len(words) > 2:
            names = line.rpartition("  ")[2].strip()
            rows[StepState(words[0])] = set() if names == "-" else {StepState(name) for name in names.split(", ")}
    assert rows == NEXT_STATES
    assert {state for state in StepState if state.is_final} == FINAL


@given(st.lists(st.sampled_from(StepState), max_size=12))
def test_a_step_takes_the_allowed_transitions_and_refuses_the_others(states: list[StepState]) -> None:
    step, reported = new_step()
    for state in states:
        before = step.state
        if state in NEXT_STATES[before]:
            step.transition(state)
            assert step.state is state
        else:
            with pytest.raises(IllegalTransition, match=f"a step that is {before} cannot become {state}"):
                step.transition(state)
            assert step.state is before
        assert step.is_final == step.ended.is_set() == (step.state in FINAL)
        assert reported == ([step.state] if step.is_final else []), "the end is reported once"


@given(st.sampled_from([state for state in StepState if state not in FINAL]), st.permutations(["cancel", "fail", "cancel"]))
def test_the_first_end_counts(state: StepState, ends: list[str]) -> None:
    step, reported = new_step()
    for each in (StepState.PLACED, StepState.STREAMING):
        if state is not step.state:
            step.transition(each)
    for end in ends:
        getattr(step, end)()
    assert reported == [StepState.CANCELLED if ends[0] == "cancel" else StepState.FAILED]


@given(st.text(max_size=20) | st.text("ab", min_size=290, max_size=310), st.data())
def test_text_after_a_retry_starts_over_and_the_client_sees_it_once(text: str, data: st.DataObject) -> None:
    sent_chars = data.draw(st.integers(0, len(text)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    step, _ = new_step()
    step.transition(StepState.PLACED)
    shown = step.add_output(Tokens(b"", text[:sent_chars]), 0, 1.0)
    for state in (StepState.ACCEPTED, StepState.PLACED):
        step.transition(state)
    skip = step.sent_chars
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        shown += step.add_output(Tokens(b"", text[begin:end]), skip, 1.0)
        skip = max(skip - (end - begin), 0)
    assert shown == text
    assert step.beginning == text[:TEXT_CHARACTERS]
    assert step.first_token_at is None, "text alone is no token"
    step.add_output(Tokens(b"\0\0\0\0", ""), 0, 2.0)
    assert step.first_token_at == 2.0
    assert step.state is StepState.STREAMING
