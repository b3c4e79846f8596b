"""Notices: each change once, in words."""

from pbkv_cluster.dashboard.notices import Notices
from pbkv_cluster.dashboard.scraping.metrics_text import parse
from pbkv_cluster.store.cluster_index import MemberEntry, ProblemsEntry

WELL = MemberEntry("worker-0", True, 0, "")
DOWN = MemberEntry("worker-0", False, 0, "it was killed by signal 9")
BACK = MemberEntry("worker-0", True, 1, "it was killed by signal 9")


def texts(notices: Notices) -> list[tuple[str, str]]:
    return [(each["level"], each["text"]) for each in reversed(notices.latest())]


def test_a_restart_is_told_once_with_its_cause() -> None:
    notices = Notices()
    for time, entry in enumerate((WELL, WELL, DOWN, DOWN, BACK, BACK)):
        notices.look(time, [entry], [], {})
    assert texts(notices) == [("bad", "worker-0 has ended: it was killed by signal 9"), ("good", "worker-0 serves again")]


def test_a_restart_between_two_looks_is_told_too() -> None:
    notices = Notices()
    notices.look(0, [WELL], [], {})
    notices.look(1, [BACK], [], {})
    assert [level for level, _ in texts(notices)] == ["bad", "good"]


def test_problems_and_guard_switches_are_told_when_they_come_and_when_they_are_over() -> None:
    notices = Notices()
    for active, problems in ((0, ()), (1, ("no memory",)), (1, ("no memory",)), (0, ())):
        scrapes = {"worker-0": parse(f"pbkv_guard_lru_active {active}")}
        notices.look(active, [], [ProblemsEntry("predictor", problems)], scrapes)
    assert [level for level, _ in texts(notices)] == ["bad", "bad", "good", "good"]
    assert texts(notices)[0] == ("bad", "predictor: no memory")
    assert "LRU" in texts(notices)[1][1]


def test_lost_events_are_counted() -> None:
    notices = Notices()
    for lost in (0, 3, 3, 5):
        notices.look(lost, [], [], {"gateway": parse(f"pbkv_events_dropped_total {lost}")})
    assert [text.split()[1] for _, text in texts(notices)] == ["3", "2"]
