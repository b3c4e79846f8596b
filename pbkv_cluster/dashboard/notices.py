"""What has happened that is worth an operator's eye, in words: found by comparing one round with the one before."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pbkv_cluster.core.metrics import names
from pbkv_cluster.dashboard.scraping.metrics_text import Scrapes
from pbkv_cluster.store.cluster_index import MemberEntry, ProblemsEntry

_MOST = 100


@dataclass(frozen=True, slots=True)
class Notice:
    """One line."""

    time: float  # seconds since the epoch
    level: str  # bad, good or note
    text: str


class Notices:
    """Watches a cluster, and keeps the latest notices."""

    def __init__(self) -> None:
        self._notices: deque[Notice] = deque(maxlen=_MOST)
        self._members: dict[str, MemberEntry] = {}
        self._problems: set[str] = set()
        self._lru_active: dict[str, bool] = {}
        self._counts: dict[tuple[str, str], float] = {}

    def latest(self) -> list[dict[str, Any]]:
        """The newest first."""
        return [asdict(notice) for notice in reversed(self._notices)]

    def note(self, time: float, level: str, text: str) -> None:
        """Adds one."""
        self._notices.append(Notice(time, level, text))

    def look(self, time: float, members: Sequence[MemberEntry], problems: Iterable[ProblemsEntry], scrapes: Scrapes) -> None:
        """Compares with the call before.

        Args:
            time: seconds since the epoch.
            members: all, as the supervisor sees them.
            problems: of members that serve nevertheless.
            scrapes: of the members that have answered.
        """
        found = (
            *self._in_members(members),
            *self._in_problems({f"{entry.member}: {text}" for entry in problems for text in entry.problems}),
            *self._in_guards(scrapes),
            *self._in_counts(scrapes),
        )
        for level, text in found:
            self.note(time, level, text)

    def _in_members(self, members: Sequence[MemberEntry]) -> Iterator[tuple[str, str]]:
        for entry in members:
            before = self._members.get(entry.name)
            if before is not None and before.up and (not entry.up or entry.restarts > before.restarts):
                yield "bad", f"{entry.name} has ended: {entry.last_failure}"
            if before is not None and entry.up and (not before.up or entry.restarts > before.restarts):
                yield "good", f"{entry.name} serves again"
            self._members[entry.name] = entry

    def _in_problems(self, present: set[str]) -> Iterator[tuple[str, str]]:
        for text in sorted(present - self._problems):
            yield "bad", text
        for text in sorted(self._problems - present):
            yield "good", f"over: {text}"
        self._problems = present

    def _in_guards(self, scrapes: Scrapes) -> Iterator[tuple[str, str]]:
        for member, scrape in scrapes.items():
            if not scrape.has(names.GUARD_LRU_ACTIVE.name):
                continue
            active = bool(scrape.value(names.GUARD_LRU_ACTIVE.name))
            if active and not self._lru_active.get(member, False):
                yield "bad", f"{member}: the policy costs more than LRU would, so the guard lets LRU evict"
            elif not active and self._lru_active.get(member, False):
                yield "good", f"{member}: the guard follows the policy again"
            self._lru_active[member] = active

    def _in_counts(self, scrapes: Scrapes) -> Iterator[tuple[str, str]]:
        """Counters of what should never be."""
        for name, what in (
            (names.EVENTS_DROPPED.name, "workflow events were lost: the predictor will not learn of them"),
            (names.DAMAGED_BLOCKS.name, "blocks in host memory were damaged; they are computed again"),
        ):
            for member, scrape in scrapes.items():
                value, before = scrape.value(name), self._counts.get((member, name), 0.0)
                if value > before:
                    yield "bad", f"{member}: {value - before:,.0f} {what}"
                self._counts[member, name] = value
