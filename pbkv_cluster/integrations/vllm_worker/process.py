"""The process of a vLLM worker: `python -m pbkv_cluster.integrations.vllm_worker.process`, started by `vllm_host`.

It reads its orders from a line of JSON on standard input, and writes two lines on standard output: its address, or why it
cannot start; later, why it has failed. It ends in good order when standard input does, and with SIGTERM. When the process that
has started it ends, the kernel kills it, and with it those that vLLM has started (`parent_death`).
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.core.logs.setup import set_up_logs
from pbkv_cluster.integrations.vllm_worker.parent_death import end_with_parent
from pbkv_cluster.rpc.security import set_up_security
from pbkv_cluster.rpc.tracing import set_up_tracing, stop_tracing

log = logging.getLogger(__name__)

_FAILED = 70  # exit status


def main() -> None:
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM prints is no answer
    orders = json.loads(sys.stdin.readline())
    context = MemberContext(**orders | {"config": Config.model_validate(orders["config"])})
    set_up_logs(context.config.logging, context.name)

    def answer(**fields: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            answers.write(json.dumps(fields) + "\n")

    sys.exit(asyncio.run(_serve(context, answer)))


async def _serve(context: MemberContext, answer: Callable[..., None]) -> int:
    from pbkv_cluster.integrations.vllm_worker.member import VllmMember

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    _at_end_of_input(lambda: loop.call_soon_threadsafe(stopping.set))
    set_up_tracing(context.config.telemetry, context.name)
    member = None
    try:
        set_up_security(context.config.security, context.cluster_key)
        member = VllmMember(context, context.name)
        starting = asyncio.ensure_future(member.start())
        if not await _first(starting, stopping):
            return 0
        answer(address=starting.result())
        failing = asyncio.ensure_future(member.wait())
        if await _first(failing, stopping):
            failing.result()
    except Exception as error:  # told to the process that has started this one
        log.exception("the worker has failed")
        answer(problem=str(error) if isinstance(error, PbkvError) else f"{type(error).__name__}: {error}")
        return _FAILED
    finally:
        if member is not None:
            await member.stop()
        stop_tracing()
    return 0


async def _first(task: "asyncio.Future[Any]", stopping: asyncio.Event) -> bool:
    """Waits for a task, or for the end; returns whether the task has ended."""
    end = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
        return False
    return True


def _at_end_of_input(call: Callable[[], object]) -> None:
    def read() -> None:
        while os.read(0, 1):  # nothing more is said there
            pass
        call()

    threading.Thread(target=read, name="orders", daemon=True).start()


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # in a process of vLLM's, where `multiprocessing` imports what its parent runs
    end_with_parent()
