"""The labels by which a workload's agents are forecast, and their columns.

An agent that several workflows have called has a label of its own: its name. One that a single workflow has called so far may
have been invented for that task, and nothing that is learnt of its name would ever be of use; it goes by its call site, where
the client names that, or by its place among the workflow's agents.

Where many calls are of agents that no other workflow calls, agents are invented for each task as a rule. All go by their call
site or place then, those too whose names come again: an order of places, "the second calls the first again", is the same from
task to task, and names among places would hide it.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.workflow.situation import END

_PLACES = 16  # agents of one workflow that are told apart without a label of their own
_REST = f"#{_PLACES}"
_SPECIAL = ("#", "@")
_SEVERAL = ""  # no workflow's name: more than one
_RATE = 0.005  # of the running share of calls whose agent was invented: its memory is 200 calls
_INVENTED = (0.1, 0.05)  # share from which on agents are taken to be invented, and below which no longer


class Labels:
    """One workload's. Column 0 is the end; others come as they are needed. Beyond a limit, the longest unseen leave."""

    def __init__(self, limit: int) -> None:
        """Args:
        limit: labels kept; beyond, a quarter leaves.
        """
        self._limit = limit
        self.names = [END]  # by column
        self._columns = {END: 0}
        self._seen_at = [0]
        self._ticks = 0
        self._named: tuple[list[str], npt.NDArray[np.intp]] = [], np.zeros(0, dtype=np.intp)  # see `agents`
        self._others = 0  # columns that it leaves out
        self._unseen = 0.0  # running share of calls whose agent was never seen before, less those whose agent comes again
        self._invented = False
        self._once: dict[str, str] = {}  # agents without a column, and the workflow that called them

    def __len__(self) -> int:
        """Columns, the end's included."""
        return len(self.names)

    def column(self, label: str) -> int:
        """A label's column, or -1."""
        return self._columns.get(label, -1)

    def label(self, agent: str, workflow: str, site: str, own: dict[str, str]) -> str:
        """The label of an agent that a workflow calls now; it has a column from now on.

        Args:
            agent: its name.
            workflow: that calls it.
            site: its call site, where that is known.
            own: labels of the workflow's agents that it keeps: those that had none of their own when it called them; grows.
        """
        known = self._is_known(agent, workflow)
        if agent in own:
            label = own[agent]
        elif known and not self._invented:
            label = agent
        else:
            label = own[agent] = f"@{site}" if site else _place(len(own))
        self._see(label)
        return label

    def declare(self, agents: Collection[str], own: dict[str, str]) -> None:
        """Gives agents labels of their own at once: a step graph names them, so they may be forecast before they ever ran.

        Args:
            agents: of the graph.
            own: labels of the workflow's agents; grows.
        """
        if len(agents) <= self._limit // 2:  # of a larger graph only those that run
            for agent in agents:
                if not agent.startswith(_SPECIAL):
                    own[agent] = agent
                    self._see(agent)

    def agents(self) -> tuple[list[str], npt.NDArray[np.intp]]:
        """The agents that have labels of their own, and their columns."""
        if len(self._named[0]) + self._others != len(self.names):
            named = [(name, at) for at, name in enumerate(self.names) if at and not name.startswith(_SPECIAL)]
            self._named = [name for name, _ in named], np.array([at for _, at in named], dtype=np.intp)
            self._others = len(self.names) - len(named)
        return self._named

    def overflow(self) -> list[int] | None:
        """If there are too many columns: those to keep, in order, which are renumbered so at once."""
        if len(self) <= self._limit + 1:
            return None
        by_age = sorted(range(1, len(self)), key=self._seen_at.__getitem__)
        kept = [0, *sorted(by_age[len(by_age) - (self._limit - self._limit // 4) :])]
        self.names = [self.names[at] for at in kept]
        self._others = -len(self.names)  # asked anew
        self._seen_at = [self._seen_at[at] for at in kept]
        self._columns = {name: at for at, name in enumerate(self.names)}
        return kept

    def _is_known(self, agent: str, workflow: str) -> bool:
        """Whether several workflows have called an agent, this one included."""
        if agent.startswith(_SPECIAL):  # as our own labels do
            return False
        first, has_column = self._once.get(agent), agent in self._columns
        unseen = first is None and not has_column
        came_again = first not in (None, _SEVERAL, workflow) and not has_column  # so it was not invented for the first
        self._unseen = max(0.0, self._unseen + _RATE * (unseen - came_again - self._unseen))
        self._invented = self._unseen > _INVENTED[self._invented]
        if came_again:
            self._once[agent] = _SEVERAL
        if has_column or came_again or first == _SEVERAL:
            return True
        self._once.pop(agent, None)
        self._once[agent] = workflow
        if len(self._once) > 4 * self._limit:
            del self._once[next(iter(self._once))]
        return False

    def _see(self, label: str) -> None:
        self._ticks += 1
        column = self._columns.get(label)
        if column is None:
            self._once.pop(label, None)
            self._columns[label] = len(self.names)
            self.names.append(label)
            self._seen_at.append(self._ticks)
        else:
            self._seen_at[column] = self._ticks

    def dump(self) -> dict[str, Any]:
        """The labels, by column, and when each was seen last."""
        return {"names": self.names[1:], "seen_at": self._seen_at[1:], "unseen": self._unseen}

    @classmethod
    def restore(cls, state: dict[str, Any], limit: int) -> "Labels":
        """Raises:
        ValueError: `state` is not what `dump` gives.
        """
        names: Any = state.get("names")
        seen_at: Any = state.get("seen_at")
        if not _all_are(str, names) or not _all_are(int, seen_at) or len(names) != len(seen_at):
            raise ValueError("labels must be a list of names, and when each was seen")
        if not all(names) or len(set(names)) != len(names):
            raise ValueError("labels must be distinct names, none empty")
        unseen: Any = state.get("unseen")
        if type(unseen) is not float or not 0.0 <= unseen <= 1.0:
            raise ValueError("the share of agents never seen before must be a number from 0 to 1")
        labels = cls(limit)
        labels._unseen, labels._invented = unseen, unseen > _INVENTED[0]
        labels.names += names
        labels._seen_at += seen_at
        labels._columns = {name: at for at, name in enumerate(labels.names)}
        labels._ticks = max(seen_at, default=0)
        return labels


def _place(number: int) -> str:
    return f"#{number}" if number < _PLACES else _REST


def _all_are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
