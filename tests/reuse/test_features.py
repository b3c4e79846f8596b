"""Facts against a reading of who used which block when, and the contexts made of them."""

import json
import os
import subprocess
import sys
from zlib import crc32

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.workflow.access_log import INSIDE, NO_ATTACH, OUTPUT_END, PROMPT_END
from pbkv_cluster.reuse.model.contexts import CONTEXTS, context_rows
from pbkv_cluster.reuse.model.features import Fact, Ints, facts
from pbkv_cluster.reuse.model.next_event import END, Event
from tests.reuse.workflow_logs import AGENTS, Path, Step, record, workflows

BITS = 48  # of a table in which nothing collides by chance
NEVER_CALLED, IN_LAST, BEFORE, NEVER = range(4)
PLAY = (
    Step("planner", (1, 2), (3,)),
    Step("coder", (9, 8, 7)),
    Step("planner", (1, 2, 3, 4), (5, 6)),
    Step("coder", (9, 1)),
)
EXPECTED: dict[Event, float] = {("planner", 5): 0.75, ("coder", 1): 0.2}


def by_path(steps: tuple[Step, ...] = PLAY) -> dict[Path, dict[str, int]]:
    """The facts of each segment, by its path from the top."""
    history = record(steps)
    found = {}
    rows = facts(history, history.segments, EXPECTED)
    for segment, row in zip(history.segments, rows.tolist(), strict=True):
        step = steps[segment.used_at[0]]
        found[step.path[: segment.stop]] = {fact.name: row[fact] for fact in Fact}
    return found


def test_the_facts_of_a_record_are_what_one_reads_in_it() -> None:
    found = by_path()
    assert set(found) == {(1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (9,), (9, 8, 7), (9, 1)}

    def column(name: str) -> dict[Path, int]:
        return {path: row[name] for path, row in found.items()}

    stem, reply, added, written, nine, left, new = (1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (9,), (9, 8, 7), (9, 1)
    assert column("AGE") == {stem: 1, reply: 1, added: 1, written: 1, nine: 0, left: 2, new: 0}
    both, once, twice = 0b1010, 0b10, 0b101
    assert column("USED_4") == {stem: both, reply: both, added: once, written: once, nine: twice, left: 0b100, new: 1}
    assert column("USED_2")[left] == 0
    assert column("OUTPUT") == {path: path == written for path in found}
    assert column("USES") == {stem: 2, reply: 2, added: 1, written: 1, nine: 2, left: 1, new: 1}
    assert column("BRANCHES") == {stem: 1, reply: 1, added: 1, written: 0, nine: 2, left: 0, new: 0}
    assert column("ON_TOP") == {path: path in (stem, nine) for path in found}
    assert column("AT_END") == {path: path == new for path in found}
    ends = {stem: PROMPT_END, reply: OUTPUT_END, added: PROMPT_END, written: OUTPUT_END, nine: INSIDE}
    assert column("ENDS") == {**ends, left: OUTPUT_END, new: OUTPUT_END}, "a step without output ends with its prompt"
    # The likeliest next agent is the planner, which ran last at step 2; the runner-up the coder, at step 3.
    assert column("IN_NEXT") == {path: IN_LAST if path[0] == 1 else NEVER for path in found}
    assert column("IN_SECOND") == {
        **dict.fromkeys((stem, reply, added, written), NEVER),
        nine: IN_LAST,
        left: BEFORE,
        new: IN_LAST,
    }
    assert column("FIRST_STEP") == {stem: 0, reply: 0, added: 2, written: 2, nine: 1, left: 1, new: 3}
    assert column("START") == {stem: 0, reply: 2, added: 2, written: 3, nine: 0, left: 1, new: 1}
    assert column("BLOCKS") == {stem: 2, reply: 1, added: 1, written: 2, nine: 1, left: 2, new: 1}
    for row in found.values():
        assert (row["STEP"], row["REPLY"], row["ADDED"], row["CONFIDENCE"], row["NEXT_SYMBOL"]) == (3, 0, 1, 2, 5)
        assert (row["AGENT"], row["AGENT_1"]) == (crc32(b"coder"), crc32(b"planner"))
        assert row["SYMBOL"] != NO_ATTACH


def test_an_agent_that_has_not_run_yet_and_a_reply_that_is_being_written() -> None:
    history = record(PLAY[:1])
    row = facts(history, history.segments, {("coder", 0): 0.5, END: 0.3})[0]
    assert (row[Fact.IN_NEXT], row[Fact.IN_SECOND]) == (NEVER_CALLED, NEVER_CALLED)
    assert row[Fact.CONFIDENCE] == 1
    history.steps[-1].ended_at = -1.0
    assert facts(history, history.segments, {})[0][Fact.REPLY] == -1


def test_equally_likely_events_fall_by_name() -> None:
    history = record(PLAY)
    expected = [("coder", 1), ("planner", 5), ("tester", 2)]
    one, other = (facts(history, history.segments, dict.fromkeys(order, 0.3)) for order in (expected, expected[::-1]))
    assert (one == other).all()


@settings(deadline=None)
@given(workflows(20).filter(bool), st.sampled_from(AGENTS), st.sampled_from(AGENTS))
def test_uses_are_those_of_the_blocks(steps: list[Step], first: str, second: str) -> None:
    history = record(steps)
    expected = {(first, 0): 0.6, (second, 1): 0.3}
    now = len(steps) - 1
    for segment, row in zip(history.segments, facts(history, history.segments, expected), strict=True):
        path = steps[segment.used_at[0]].path[: segment.stop]
        used = [number for number, step in enumerate(steps) if step.path[: len(path)] == path]
        mask = sum(1 << (now - number) for number in used if now - number < 16)
        assert [row[fact] for fact in (Fact.USED_2, Fact.USED_4, Fact.USED_8, Fact.USED_16)] == [
            mask % 4,
            mask % 16,
            mask % 256,
            mask,
        ]
        assert row[Fact.OUTPUT] == all(len(path) > len(steps[number].prompt) for number in used)
        assert row[Fact.USES] == min(len(used), 6)
        assert row[Fact.FIRST_STEP] == min(used[0], 20)
        assert (row[Fact.FIRST_AGENT], row[Fact.LAST_AGENT]) == tuple(
            crc32(steps[number].agent.encode()) for number in (used[0], used[-1])
        )
        for fact, agent in ((Fact.IN_NEXT, first), (Fact.IN_SECOND, second)):
            calls = [number for number, step in enumerate(steps) if step.agent == agent]
            touched = [number for number in used if number in calls]
            relation = NEVER_CALLED if not calls else NEVER if not touched else IN_LAST if touched[-1] == calls[-1] else BEFORE
            assert row[fact] == relation
    assert len(facts(history, [], expected)) == 0


row_of_facts = st.lists(st.integers(-1, 2**38), min_size=len(Fact), max_size=len(Fact))


@given(row_of_facts, st.sampled_from(list(Fact)), st.integers(-1, 2**38))
def test_a_place_depends_on_the_facts_of_its_context_alone(row: list[int], fact: Fact, value: int) -> None:
    changed = list(row)
    changed[fact] = value
    first, second, again = context_rows(np.array([row, changed, row], dtype=np.int64), BITS)
    assert (first == again).all()
    different = (first != second).tolist()
    assert different == [fact in context and row[fact] != value for context in CONTEXTS]
    assert 0 <= min(first) <= max(first) < 2**BITS


def test_each_context_has_places_of_its_own() -> None:
    places = context_rows(np.zeros((1, len(Fact)), dtype=np.int64), BITS)[0]
    assert len(set(places.tolist())) == len(CONTEXTS)


def places_of_the_play() -> list[int]:
    history = record(PLAY)
    found: Ints = context_rows(facts(history, history.segments, EXPECTED), 18)
    return [*found[0, :6].tolist(), crc32(np.ascontiguousarray(found, dtype="<i8").tobytes())]


def test_places_are_part_of_the_format_of_saved_models() -> None:
    """Whoever changes contexts or facts makes another version of it."""
    golden = [164223, 118031, 44857, 22664, 143044, 38692, 2055382943]
    assert places_of_the_play() == golden
    code = "import json; from tests.reuse.test_features import places_of_the_play as p; print(json.dumps(p()))"
    for seed in ("1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60)
        assert json.loads(out.stdout) == golden
