"""Something that one does at a time, where whoever waits gets a turn before another gets a second one."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairTurn:
    """Those who wait are served one of each name in turn; of one name, in order of arrival."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()  # by name, the next one first

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
        self._waiting.setdefault(name, OrderedDict())[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(name, turn)
            elif turn.done():  # its turn had come already
                self._pass_on()
            raise

    def _leave(self, name: str, turn: asyncio.Future[None]) -> None:
        """One who waits gives up. Others of its name keep their place, as it has had no turn."""
        if (turns := self._waiting.get(name)) is not None:
            turns.pop(turn, None)  # gone where the turn has been passed on since it was cancelled
            if not turns:
                del self._waiting[name]

    def _pass_on(self) -> None:
        while self._waiting:
            name, turns = next(iter(self._waiting.items()))
            turn, _ = turns.popitem(last=False)
            if not turns:
                del self._waiting[name]
            if turn.done():  # cancelled, and yet to hear of it
                continue
            if turns:
                self._waiting.move_to_end(name)
            turn.set_result(None)
            return
        self._is_taken = False
