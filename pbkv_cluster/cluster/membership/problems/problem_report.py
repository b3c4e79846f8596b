"""Tells the directory what does not work as it should at a member that serves nevertheless."""

from collections.abc import Callable, Mapping, Sequence

from pbkv_cluster.store.cluster_index import Directory, ProblemsEntry
from pbkv_cluster.store.cluster_index.entries import MAX_PROBLEM_CHARACTERS, MAX_PROBLEMS


class ProblemReport:
    """The problems of one member. An `Announcer` calls `announce` at intervals, and `withdraw` at the end."""

    def __init__(
        self,
        directory: Directory,
        member: str,
        problems: Callable[[], Sequence[str]] = tuple,
        reasons: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Args:
        directory: that of the cluster.
        member: name of the member.
        problems: the present ones, in words; none: all is well.
        reasons: how often the member has done what, by reason code, where that is no problem of its own.
        """
        self._directory = directory
        self._member = member
        self._problems = problems
        self._reasons = reasons
        self._announced = False

    async def announce(self) -> None:
        """Enters or renews the present problems, or takes back those that are over."""
        problems = tuple(problem[:MAX_PROBLEM_CHARACTERS] for problem in self._problems()[:MAX_PROBLEMS])
        reasons = dict(self._reasons())
        if problems or reasons:
            self._announced = True
            await self._directory.announce_problems(ProblemsEntry(self._member, problems, reasons))
        else:
            await self.withdraw()

    async def withdraw(self) -> None:
        """Takes back what was entered."""
        if self._announced:
            await self._directory.withdraw_problems(self._member)
            self._announced = False
