"""The labels by which a workload's agents are forecast, and their columns.

An agent that several workflows have called is known by its name. An agent that only one workflow has called so far may have
been invented for its task, so nothing learnt of its name would ever be useful: its label is its call site, "@site", if the
client gives one, or else its rank among the workflow's agents, "#0", "#1" and so on.

When many calls go to agents that no other workflow calls, the application invents agents as a rule. Then all agents are
labelled by call site or rank, even those whose names come again: an order of ranks, "the second calls the first again", is the
same for every task, and names among the ranks would hide it.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.workflow.situation import END

_RANKS = 16  # agents of one workflow that have a rank of their own; the others share a label
_SPECIAL = ("#", "@")
_SEVERAL = ""  # instead of a workflow's id: several workflows
_RATE = 0.005  # of the running share of calls to invented agents: it remembers some 200 calls
_INVENTED_ABOVE, _INVENTED_UNTIL = 0.1, 0.05  # shares at which agents start and cease to count as invented as a rule


class Labels:
    """One workload's labels. Column 0 is the end; others are added as needed. Beyond a limit, the longest unseen leave."""

    def __init__(self, limit: int) -> None:
        """Args:
        limit: labels kept; beyond, a quarter leaves.
        """
        self._limit = limit
        self.names = [END]  # by column
        self._columns = {END: 0}
        self._seen_at = [0]
        self._ticks = 0
        self._agents: tuple[list[str], npt.NDArray[np.intp]] = [], np.zeros(0, dtype=np.intp)  # see `agents`
        self._other_columns = 0  # that `_agents` leaves out
        self._new_share = (
            0.0  # running share of calls whose agent is new, less that of calls whose agent turns out to be shared
        )
        self._invented = False  # agents are invented as a rule
        self._first_callers: dict[str, str] = {}  # by agent without a column: the workflow that called it

    def __len__(self) -> int:
        """Columns, the end's included."""
        return len(self.names)

    @property
    def unshared_agents(self) -> int:
        """Agents remembered that have no column of their own."""
        return len(self._first_callers)

    def column(self, label: str) -> int:
        """A label's column, or -1."""
        return self._columns.get(label, -1)

    def label(self, agent: str, workflow: str, call_site: str, own: dict[str, str], counted: bool = False) -> str:
        """The label of an agent that a workflow calls now; it has a column from now on.

        Args:
            agent: its name.
            workflow: that calls it.
            call_site: where it is called, "" if unknown.
            own: the workflow's labels of agents that had none of their own when it first called them; it keeps these. Grows.
            counted: the call has been counted, before a restart.
        """
        shared = self._is_shared(agent, workflow, counted)
        if agent in own:
            label = own[agent]
        elif shared and not self._invented:
            label = agent
        else:
            label = own[agent] = f"@{call_site}" if call_site else f"#{min(len(own), _RANKS)}"
        self._see(label, counted)
        return label

    def declare(self, agents: Collection[str], own: dict[str, str]) -> None:
        """Labels the agents of a step graph by their names, so that they can be forecast before they ever run.

        Args:
            agents: of the graph.
            own: labels of the workflow's agents; grows.
        """
        if len(agents) <= self._limit // 2:  # of a larger graph, only the agents that run get labels
            for agent in agents:
                if not agent.startswith(_SPECIAL):
                    own[agent] = agent
                    self._see(agent)

    def agents(self) -> tuple[list[str], npt.NDArray[np.intp]]:
        """The agents that are known by their names, and their columns."""
        if len(self._agents[0]) + self._other_columns != len(self.names):
            named = [(name, at) for at, name in enumerate(self.names) if at and not name.startswith(_SPECIAL)]
            self._agents = [name for name, _ in named], np.array([at for _, at in named], dtype=np.intp)
            self._other_columns = len(self.names) - len(named)
        return self._agents

    def overflow(self) -> list[int] | None:
        """Drops labels if there are too many. Returns the columns kept, in order; the i-th of them is column i from now on."""
        if len(self) <= self._limit + 1:
            return None
        by_age = sorted(range(1, len(self)), key=self._seen_at.__getitem__)
        kept = [0, *sorted(by_age[len(by_age) - (self._limit - self._limit // 4) :])]
        self.names = [self.names[at] for at in kept]
        self._other_columns = -len(self.names)  # so that `agents` looks again
        self._seen_at = [self._seen_at[at] for at in kept]
        self._columns = {name: at for at, name in enumerate(self.names)}
        return kept

    def _is_shared(self, agent: str, workflow: str, counted: bool) -> bool:
        """Counts a call, unless that was done. Returns whether several workflows have called the agent, this one included."""
        if agent.startswith(_SPECIAL):  # looks like a label of ours
            return False
        caller, has_column = self._first_callers.get(agent), agent in self._columns
        new = caller is None and not has_column
        now_shared = caller not in (None, _SEVERAL, workflow) and not has_column  # so the first workflow did not invent it
        if not counted:
            self._new_share = max(0.0, self._new_share + _RATE * (new - now_shared - self._new_share))
        self._invented = self._new_share > (_INVENTED_UNTIL if self._invented else _INVENTED_ABOVE)
        if now_shared:
            self._first_callers[agent] = _SEVERAL
        if has_column or now_shared or caller == _SEVERAL:
            return True
        self._first_callers.pop(agent, None)
        self._first_callers[agent] = workflow
        if len(self._first_callers) > 4 * self._limit:
            del self._first_callers[next(iter(self._first_callers))]
        return False

    def _see(self, label: str, counted: bool = False) -> None:
        column = self._columns.get(label)
        if counted and column is not None:
            return
        self._ticks += 1
        if column is None:
            self._first_callers.pop(label, None)
            self._columns[label] = len(self.names)
            self.names.append(label)
            self._seen_at.append(self._ticks)
        else:
            self._seen_at[column] = self._ticks

    def dump(self) -> dict[str, Any]:
        """The labels, by column, and when each was last seen."""
        return {"names": self.names[1:], "seen_at": self._seen_at[1:], "unseen": self._new_share}

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
        share: Any = state.get("unseen")
        if type(share) is not float or not 0.0 <= share <= 1.0:
            raise ValueError("the share of agents never seen before must be a number from 0 to 1")
        labels = cls(limit)
        labels._new_share, labels._invented = share, share > _INVENTED_ABOVE
        labels.names += names
        labels._seen_at += seen_at
        labels._columns = {name: at for at, name in enumerate(labels.names)}
        labels._ticks = max(seen_at, default=0)
        return labels


def _all_are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
