"""The steps in flight by their ids, so that one can begin after the end of others.

A client may learn from a worker that a step has ended before this gateway does. What it does next must not overtake that.
"""

import asyncio
from collections.abc import Iterable

from pbkv_cluster.gateway.step.step import Step

_Id = tuple[str, str]  # workflow and step


class StepsInFlight:
    """Those that have an id."""

    def __init__(self) -> None:
        self._steps: dict[_Id, Step] = {}
        self._ids: dict[Step, _Id] = {}
        self._followed: set[Step] = set()  # that another waits for which does not count yet

    def begin(self, step: Step, workflow_id: str, step_id: str) -> None:
        """A step is in flight until `end`. Of several calls for one step, the latest counts."""
        if step_id and not step.is_final:
            self._ids[step] = workflow_id, step_id
            self._steps[workflow_id, step_id] = step

    def end(self, step: Step) -> None:
        """A step is over. Harmless when repeated."""
        if (found := self._ids.pop(step, None)) is not None and self._steps.get(found) is step:
            del self._steps[found]

    async def wait(self, step: Step, workflow_id: str, after: Iterable[str], *, is_counted: bool) -> None:
        """Waits until some steps are over, or the one that waits is.

        Args:
            step: that waits.
            workflow_id: of all of them.
            after: ids of those to wait for; what is not in flight here is over.
            is_counted: `step` counts to its tenant. If it does not, as the others are not to count beside it, it waits for
                those for which nobody else does so: no more steps wait uncounted than there are counted ones.
        """
        for step_id in after:
            earlier = self._steps.get((workflow_id, step_id))
            if earlier is None or earlier is step or earlier.is_final or step.is_final:
                continue
            if is_counted:
                await _first_end(earlier, step)
            elif earlier not in self._followed:
                self._followed.add(earlier)
                try:
                    await _first_end(earlier, step)
                finally:
                    self._followed.discard(earlier)


async def _first_end(*steps: Step) -> None:
    ends = [asyncio.create_task(each.ended.wait()) for each in steps]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()
