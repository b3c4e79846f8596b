"""Who looks at the dashboard: each gets the latest snapshot."""

import asyncio
from collections.abc import AsyncGenerator

from pbkv_cluster.core.errors import ResourceExhausted

MOST = 100


class Viewers:
    """Passes snapshots on. A slow viewer skips some, so nothing queues."""

    def __init__(self) -> None:
        self.count = 0
        self.came = asyncio.Event()  # set when there is somebody after there was nobody
        self._latest = b""
        self._number = 0
        self._turn = asyncio.Event()  # set, and replaced, with each snapshot
        self._closed = False

    def show(self, snapshot: str) -> None:
        """Gives all viewers a snapshot: JSON in one line. It is made a message once for all of them."""
        self._latest = f"data: {snapshot}\n\n".encode()
        self._number += 1
        self._next_turn()

    def close(self) -> None:
        """Ends all streams."""
        self._closed = True
        self._next_turn()

    async def follow(self) -> AsyncGenerator[bytes]:
        """Yields the next snapshot as a server-sent event, and then always the latest. Who follows is counted while it does."""
        if self.count >= MOST:
            raise ResourceExhausted(f"{MOST} viewers are connected already")
        self.count += 1
        if self.count == 1:
            self.came.set()
        try:
            seen = self._number
            while not self._closed:
                if self._number == seen:
                    await self._turn.wait()
                    continue
                seen = self._number
                yield self._latest
        finally:
            self.count -= 1

    def _next_turn(self) -> None:
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()
