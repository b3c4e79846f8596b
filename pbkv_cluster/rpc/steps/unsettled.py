"""Steps whose end a client knows from a worker, while their gateway may not know it yet."""

import asyncio
from collections.abc import Sequence

MAX_NAMED = 64  # that one step may name to begin after


class Unsettled:
    """Those of one client."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, asyncio.Event]] = {}  # by workflow and id, in the order of their ends

    def add(self, workflow_id: str, step_id: str) -> None:
        self._of.setdefault(workflow_id, {})[step_id] = asyncio.Event()

    def settle(self, workflow_id: str, step_id: str) -> None:
        """The gateway knows of a step's end, or cannot be asked. Harmless when repeated."""
        steps = self._of.get(workflow_id, {})
        if (settled := steps.pop(step_id, None)) is not None:
            settled.set()
            if not steps:
                del self._of[workflow_id]

    def latest(self, workflow_id: str) -> Sequence[str]:
        """Ids of the workflow's steps, as many as a step may name."""
        return list(self._of.get(workflow_id, ()))[-MAX_NAMED:]

    async def wait(self, workflow_id: str | None, timeout_s: float) -> None:
        """Waits until the steps of a workflow, or of all, are settled; at most so many seconds."""
        found = list(self._of.values()) if workflow_id is None else [self._of.get(workflow_id, {})]
        waits = [asyncio.create_task(each.wait()) for steps in found for each in steps.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=timeout_s)
            for each in late:
                each.cancel()
