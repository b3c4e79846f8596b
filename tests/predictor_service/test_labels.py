"""Labels of agents and their columns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.predictor_service.experts.labels import Labels
from pbkv_cluster.predictor_service.workflow.situation import END


def known(*agents: str, limit: int = 64) -> Labels:
    """Labels of agents that two workflows have called."""
    labels = Labels(limit)
    for workflow in ("first", "second"):
        for agent in agents:
            labels.label(agent, workflow, "", {})
    return labels


def test_an_agent_has_a_name_of_its_own_once_two_workflows_have_called_it() -> None:
    labels, own, other = Labels(64), dict[str, str](), dict[str, str]()
    assert labels.label("a", "w1", "", own) == "#0"
    assert labels.label("b", "w1", "", own) == "#1"
    assert labels.label("a", "w1", "", own) == "#0"
    assert labels.label("a", "w2", "", other) == "a"
    assert labels.label("c", "w2", "", other) == "#0"
    assert labels.names == [END, "#0", "#1", "a"]
    assert [labels.column(name) for name in (END, "#0", "a", "c")] == [0, 1, 3, -1]


def test_a_workflow_keeps_the_labels_that_it_began_with() -> None:
    labels, own = Labels(64), dict[str, str]()
    labels.label("a", "w1", "", own)
    labels.label("a", "w2", "", {})
    assert labels.label("a", "w1", "", own) == "#0"
    assert labels.label("a", "w3", "", {}) == "a"


def test_agents_without_a_name_of_their_own_go_by_their_call_site() -> None:
    labels, own = Labels(64), dict[str, str]()
    assert labels.label("expert-17", "w", "plan.py:3", own) == "@plan.py:3"
    assert labels.label("expert-18", "v", "plan.py:3", {}) == "@plan.py:3"
    assert len(labels) == 2


def test_names_that_look_like_our_labels_are_never_taken_for_them() -> None:
    labels = known("#3", "@x")
    assert labels.label("#3", "third", "", {}) == "#0"
    assert labels.label("@x", "third", "", {}) == "#0"


def test_ranks_are_bounded() -> None:
    labels, own = Labels(64), dict[str, str]()
    assert len({labels.label(f"a{at}", "w", "", own) for at in range(100)}) == 17


def test_declared_agents_have_names_at_once() -> None:
    labels, own = Labels(64), dict[str, str]()
    labels.declare(["plan", "code", "#1"], own)
    assert labels.names == [END, "plan", "code"]
    assert labels.label("code", "w", "", own) == "code"
    labels.declare([f"a{at}" for at in range(40)], {})  # more than half of all columns
    assert len(labels) == 3


def test_agents_with_labels_of_their_own_are_told_with_their_columns() -> None:
    labels = Labels(8)
    for workflow in ("v", "w"):
        own: dict[str, str] = {}
        labels.label("a", workflow, "", own)
        labels.label("b", workflow, "plan", own)
    names, columns = labels.agents()
    assert (names, columns.tolist()) == (["a", "b"], [labels.column("a"), labels.column("b")])
    for at in range(9):
        labels.declare([f"new-{at}"], {})
    assert labels.overflow() is not None
    names, columns = labels.agents()
    assert [labels.names[column] for column in columns] == names == ["new-3", "new-4", "new-5", "new-6", "new-7", "new-8"]


def test_where_agents_are_invented_all_go_by_rank() -> None:
    labels = Labels(64)
    for number in range(60):
        own: dict[str, str] = {}
        for agent in (f"invented-{number}", "checker", f"another-{number}"):
            labels.label(agent, f"w{number}", "", own)
    own = {}
    assert [labels.label(agent, "now", "", own) for agent in ("new", "checker", "new")] == ["#0", "#1", "#0"]
    for number in range(2000):  # they are not any more
        labels.label("checker", f"v{number}", "", {})
    assert labels.label("checker", "later", "", {}) == "checker"


def test_a_few_new_agents_change_nothing() -> None:
    labels = known(*(f"a{at}" for at in range(15)))
    assert labels.label("a3", "w", "", {}) == "a3"


def test_beyond_the_limit_the_longest_unseen_leave() -> None:
    labels = known(*"abcdefgh", limit=8)  # and the ranks #0 … #7 of their first calls
    kept = labels.overflow()
    assert kept is not None
    assert kept[0] == 0
    assert kept == sorted(kept)
    assert labels.names == [END, *"cdefgh"]
    assert [labels.column(name) for name in "ach"] == [-1, 1, 6]
    assert labels.overflow() is None


@given(calls=st.lists(st.tuples(st.sampled_from("uvwxyz"), st.integers(0, 40), st.sampled_from(["", "s"])), max_size=300))
def test_columns_are_always_the_names_order(calls: list[tuple[str, int, str]]) -> None:
    labels = Labels(8)
    owns: dict[str, dict[str, str]] = {}
    for workflow, agent, call_site in calls:
        label = labels.label(f"agent-{agent}", workflow, call_site, owns.setdefault(workflow, {}))
        assert labels.names[labels.column(label)] == label
        before = list(labels.names)
        kept = labels.overflow()
        if kept is not None:
            assert labels.names == [before[at] for at in kept]
            assert labels.column(label) > 0  # the latest seen stays
        assert len(labels) <= 9
        assert len(set(labels.names)) == len(labels.names)
        again = Labels.restore(labels.dump(), 8)
        assert (again.names, again.dump()) == (labels.names, labels.dump())


@pytest.mark.parametrize(
    "damage",
    [
        {"names": None},
        {"names": ["a", "a"]},
        {"names": ["", "b"]},
        {"names": ["a"]},
        {"names": [1, 2]},
        {"seen_at": [1.5, 2.5]},
        {"unseen": 2.0},
        {"unseen": None},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, object]) -> None:
    state = {"names": ["a", "b"], "seen_at": [1, 2], "unseen": 0.0}
    assert Labels.restore(state, 8).names == [END, "a", "b"]
    with pytest.raises(ValueError, match="must be"):
        Labels.restore({**state, **damage}, 8)
