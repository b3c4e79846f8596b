"""Something that one does at a time, where whoever waits gets a turn before another gets a second one."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairTurn:
    """Those who wait are served one of each name in turn; of one name, in order of arrival."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by name, the next one first

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Waits for a turn, and has it until the block ends."""
        await self._wait(name)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, name: str) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn had come already
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            name, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[name] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False
