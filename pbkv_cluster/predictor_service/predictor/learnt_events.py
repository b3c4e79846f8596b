"""How far events of open workflows, and of those that were closed lately, have been learnt from, saved with what was learnt.

After a restart the gateway tells the open workflows' events again, and those that were not acknowledged. Events that the saved
state has learnt from bring the prediction state of their workflow back, and nothing is learnt from them a second time.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent

_MAX_WORKFLOWS = 1 << 17  # saved; those that have not been heard of for longest leave
_MAX_CLOSED = 8192  # more than events wait for an acknowledgement


class _Learnt(NamedTuple):
    sequence: int  # of the latest event
    time: float  # of the latest event, by its sender's clock


class LearntEvents:
    """Workflows that a restored state has learnt from, until they are heard of; and those that have been closed since.

    A workflow is closed when it has ended, or when the predictor forgets it.
    """

    def __init__(self) -> None:
        self._learnt: dict[int, _Learnt] = {}  # by the hash of their ids
        self._closed: dict[int, _Learnt] = {}  # likewise; the latest

    def take(self, event: WorkflowEvent) -> int:
        """The sequence up to which a workflow was learnt from; -1: it was not. Asked with the first event that is heard of it.

        A WORKFLOW_STARTED that is later than all that was learnt from opens the id anew.
        """
        learnt = self._learnt.pop(_key(event.workflow), None)
        if learnt is None or (event.kind is EventKind.WORKFLOW_STARTED and event.time > learnt.time):
            return -1
        return learnt.sequence

    def add_closed(self, workflow: str, sequence: int, time: float) -> None:
        """A workflow was closed.

        Args:
            workflow: its id.
            sequence: of the latest event that was learnt from.
            time: of the latest event, by its sender's clock.
        """
        self._closed[_key(workflow)] = _Learnt(sequence, time)
        if len(self._closed) > _MAX_CLOSED:
            del self._closed[next(iter(self._closed))]

    def dump(self, workflows: Iterable[tuple[str, int, float]]) -> dict[str, Any]:
        """Adds open workflows to those that were restored, and to those that were closed.

        Args:
            workflows: id of each, and sequence and time of the latest event that was learnt from.
        """
        present = {_key(name): _Learnt(sequence, time) for name, sequence, time in workflows}
        rows = dict([*self._learnt.items(), *self._closed.items(), *present.items()][-_MAX_WORKFLOWS:])
        return {
            "workflows": np.array(list(rows), dtype=np.uint64),
            "sequences": np.array([each.sequence for each in rows.values()], dtype=np.int64),
            "times": np.array([each.time for each in rows.values()], dtype=np.float64),
        }

    @classmethod
    def restore(cls, state: Any) -> "LearntEvents":
        """Raises:
        ValueError: `state` is not what `dump` gives.
        """
        kinds = {"workflows": "u", "sequences": "i", "times": "f"}
        if not isinstance(state, dict) or not all(
            isinstance(array := state.get(name), np.ndarray) and array.ndim == 1 and array.dtype.kind == kind
            for name, kind in kinds.items()
        ):
            raise ValueError("how far open workflows were learnt from is missing")
        columns = [state[name].tolist() for name in kinds]
        if len({len(column) for column in columns}) > 1:
            raise ValueError("how far open workflows were learnt from is damaged")
        restored = cls()
        restored._learnt = {workflow: _Learnt(sequence, time) for workflow, sequence, time in zip(*columns, strict=True)}
        return restored


def _key(workflow: str) -> int:
    return xxh3_64_intdigest(workflow.encode())
