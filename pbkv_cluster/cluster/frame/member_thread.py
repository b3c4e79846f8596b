"""Runs a member on an event loop in a thread of its own, or prepares for it, for a caller that is not asynchronous."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from pbkv_cluster.cluster.membership.member import MakeMember, Member, MemberContext

log = logging.getLogger(__name__)


class MemberThread:
    """A member that serves until `stop`, or until it fails."""

    def __init__(self, make: Callable[[], Member], on_failure: Callable[[BaseException], None]) -> None:
        """Args:
        make: makes the member; called on the thread.
        on_failure: receives the error of a member that fails after it has started; called on the thread.
        """
        self._make = make
        self._on_failure = on_failure
        self.started: Future[str] = Future()  # the address, or the error that prevented the start
        self._stopping = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="member", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Stops the member and waits for its end, at most `timeout_s` seconds."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # passed on to the caller
            if self.started.done():
                log.critical("a member of the cluster failed", exc_info=error)
                self._on_failure(error)
            else:
                self.started.set_exception(error)

    async def _serve(self) -> None:
        member = self._make()
        try:
            self.started.set_result(await member.start())
            failure = asyncio.ensure_future(member.wait())
            stopping = asyncio.ensure_future(self._stopping.wait())
            done, pending = await asyncio.wait({failure, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            if failure in done:
                failure.result()
        finally:
            await member.stop()


def prepare(make: MakeMember, context: MemberContext) -> None:
    """Has a member load what it needs to start, and drops it."""

    async def run() -> None:
        member = make(context)
        try:
            await asyncio.to_thread(member.prepare)
        finally:
            await member.stop()

    asyncio.run(run())
