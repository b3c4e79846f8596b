"""The steps in flight by their ids, so that one can begin after the end of others.

A client may learn from a worker that a step has ended before this gateway does. What it does next must not overtake that.
"""

import asyncio
from collections.abc import Callable, Iterable

from pbkv_cluster.gateway.step.step import Step

_Id = tuple[str, str]  # workflow and step


class StepsInFlight:
    """Those that have an id."""

    def __init__(self) -> None:
        self._steps: dict[_Id, Step] = {}
        self._ids: dict[Step, _Id] = {}
        self._numbers: dict[Step, int] = {}  # in the order of their beginnings
        self._begun = 0
        self._followed: set[Step] = set()  # that another waits for which does not count yet

    def begin(self, step: Step, workflow_id: str, step_id: str) -> None:
        """A step is in flight until `end`. Of several calls for one step, the latest counts."""
        if step_id and not step.is_final:
            self._begun += 1
            self._numbers[step] = self._begun
            self._ids[step] = workflow_id, step_id
            self._steps[workflow_id, step_id] = step

    def end(self, step: Step) -> None:
        """A step is over. Harmless when repeated."""
        self._numbers.pop(step, None)
        if (found := self._ids.pop(step, None)) is not None and self._steps.get(found) is step:
            del self._steps[found]

    async def wait(
        self, step: Step, workflow_id: str, after: Iterable[str], counts: Callable[[Step], bool] | None = None
    ) -> None:
        """Waits until some steps are over, or the one that waits is.

        Args:
            step: that waits.
            workflow_id: of all of them.
            after: ids of those to wait for; what is not in flight here is over, and what began later is not waited for.
            counts: whether a step counts to its tenant; given where `step` does not yet, as the others are not to count beside
                it. Then it waits for those that count and for which nobody else waits so: no more steps wait uncounted than
                there are counted ones. By default, `step` counts.
        """
        for step_id in after:
            earlier = self._steps.get((workflow_id, step_id))
            if earlier is None or earlier.is_final or step.is_final or not self._began_before(earlier, step):
                continue
            if counts is None:
                await _first_end(earlier, step)
            elif earlier not in self._followed and counts(earlier):
                self._followed.add(earlier)
                try:
                    await _first_end(earlier, step)
                finally:
                    self._followed.discard(earlier)

    def _began_before(self, earlier: Step, step: Step) -> bool:
        """So that no two steps wait for each other. A step without an id is one that nobody waits for."""
        number = self._numbers.get(step)
        return number is None or self._numbers[earlier] < number


async def _first_end(*steps: Step) -> None:
    ends = [asyncio.create_task(each.ended.wait()) for each in steps]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()
