"""Token ids as a function of segment and offset."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.tokens import as_array, count, unpack
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep
from pbkv_cluster.simulator.workload.prompts import PromptBuilder, scaled

SCALES = st.floats(min_value=1e-6, max_value=1.0)
LENGTHS = st.integers(0, 5000)


def step(*prompt: tuple[str, int], output: tuple[str, int] = ("out", 5)) -> TraceStep:
    segments = tuple(Segment(SegmentKind.HISTORY, name, tokens) for name, tokens in prompt)
    return TraceStep("agent", segments, *output)


def test_ids_never_change() -> None:
    assert unpack(PromptBuilder().segment("e81e9114ec3a16a1", 8)) == [510, 910, 505, 350, 1006, 811, 684, 671]
    assert unpack(PromptBuilder(151_936, 100).segment("history", 5)) == [6079, 6477, 15330, 51850, 110840]


def test_ids_are_those_of_another_process() -> None:
    code = (
        "from pbkv_cluster.simulator.workload.prompts import PromptBuilder; print(PromptBuilder(5000).segment('ä', 40).hex())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env={"PYTHONHASHSEED": "7"}
    )
    assert other.stdout.strip() == PromptBuilder(5000).segment("ä", 40).hex()


@given(name=st.text(), vocab=st.integers(20, 2**31), reserved=st.integers(0, 18), tokens=st.integers(1, 300))
def test_ids_lie_between_the_reserved_ones_and_the_vocabulary(name: str, vocab: int, reserved: int, tokens: int) -> None:
    ids = as_array(PromptBuilder(vocab, reserved).segment(name, tokens))
    assert len(ids) == tokens
    assert reserved <= ids.min()
    assert ids.max() < vocab


def test_ids_spread_over_the_vocabulary() -> None:
    ids = as_array(PromptBuilder(116, 16).segment("x", 100_000))
    assert set(ids.tolist()) == set(range(16, 116))
    occurrences = [int((ids == token).sum()) for token in range(16, 116)]
    assert 800 < min(occurrences) <= max(occurrences) < 1200


@given(name=st.text(), shorter=LENGTHS, longer=LENGTHS)
def test_a_shorter_segment_is_a_prefix_of_a_longer_one(name: str, shorter: int, longer: int) -> None:
    shorter, longer = sorted((shorter, longer))
    builder = PromptBuilder()
    assert builder.segment(name, longer).startswith(builder.segment(name, shorter))


@given(left=st.text(max_size=20), right=st.text(max_size=20))
def test_unequal_segments_share_no_block(left: str, right: str) -> None:
    builder = PromptBuilder()
    assert (builder.segment(left, 16) == builder.segment(right, 16)) == (left == right)


@given(short=LENGTHS, more=LENGTHS, factor=SCALES)
def test_scaling_keeps_the_order_of_lengths_and_never_empties(short: int, more: int, factor: float) -> None:
    assert scaled(short, factor) <= scaled(short + more, factor)
    assert (scaled(short, factor) == 0) == (short == 0)
    assert scaled(short, 1.0) == short


@given(output=st.integers(1, 3000), system=st.integers(1, 500), factor=SCALES, cap=st.none() | st.integers(1, 50))
def test_the_next_prompt_begins_with_prompt_and_reply(output: int, system: int, factor: float, cap: int | None) -> None:
    builder = PromptBuilder(scale=factor, max_output=cap)
    first = step(("system", system), ("task", 30), output=("reply", output))
    then = step(("system", system), ("task", 30), ("reply", output + 4), ("tool", 9))
    assert builder.prompt(then).startswith(builder.prompt(first) + builder.output(first))


def test_markup_follows_the_reply() -> None:
    builder = PromptBuilder()
    first = step(("system", 10), output=("reply", 20))
    then = step(("system", 10), ("reply", 24))
    tail = builder.prompt(then).removeprefix(builder.prompt(first) + builder.output(first))
    assert count(tail) == 4


def test_another_system_prompt_leaves_no_prefix() -> None:
    builder = PromptBuilder()
    left, right = builder.prompt(step(("a", 16), ("task", 50))), builder.prompt(step(("b", 16), ("task", 50)))
    assert left[:64] != right[:64]
    assert left[64:] == right[64:]


def test_a_reply_is_never_empty() -> None:
    assert count(PromptBuilder().output(step(("s", 1), output=("nothing", 0)))) == 1
    assert count(PromptBuilder(max_output=7).output(step(("s", 1), output=("much", 900)))) == 7


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"vocab_size": 17}, "vocab_size"),
        ({"vocab_size": 2**31 + 1}, "vocab_size"),
        ({"reserved": -1}, "reserved"),
        ({"scale": 0.0}, "scale_tokens"),
        ({"scale": 1.5}, "scale_tokens"),
        ({"scale": float("nan")}, "scale_tokens"),
        ({"max_output": 0}, "max_output"),
    ],
)
def test_refuses_values_out_of_range(arguments: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        PromptBuilder(**arguments)  # type: ignore[arg-type]
