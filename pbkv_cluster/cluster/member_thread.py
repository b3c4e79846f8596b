"""Runs one member on an event loop in a thread of its own, for frames that are not asynchronous."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from pbkv_cluster.cluster.member_context import Member

log = logging.getLogger(__name__)


class MemberThread:
    """A member that serves until `stop`, or until it fails."""

    def __init__(self, make: Callable[[], Member], on_failure: Callable[[BaseException], None]) -> None:
        """Args:
        make: makes the member; called on the thread.
        on_failure: told what ended the member after it had started; called on the thread.
        """
        self._make = make
        self._on_failure = on_failure
        self.started: Future[str] = Future()  # the address, or what kept it from starting
        self._stopping = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="member", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the member; returns when it has, at the latest after `timeout_s` seconds."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:  # handed on, whatever it is
            if self.started.done():
                log.critical("a member of the cluster failed", exc_info=error)
                self._on_failure(error)
            else:
                self.started.set_exception(error)

    async def _live(self) -> None:
        member = self._make()
        try:
            self.started.set_result(await member.start())
            waiting = asyncio.ensure_future(member.wait())
            stopping = asyncio.ensure_future(self._stopping.wait())
            done, rest = await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            if waiting in done:
                waiting.result()
        finally:
            await member.stop()
