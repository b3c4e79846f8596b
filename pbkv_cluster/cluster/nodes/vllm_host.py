"""A worker whose engine is vLLM: the member is a process of its own, as vLLM's interpreter and environment may be others."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any

from pbkv_cluster.cluster.membership.member import MemberContext
from pbkv_cluster.cluster.membership.worker_member import with_model
from pbkv_cluster.core.errors import StartupError, Unavailable
from pbkv_cluster.core.locations.installation import install_command

PROCESS = "pbkv_cluster.integrations.vllm_worker.process"
_STOP_S = 12.0  # for the process to end in good order


class VllmHost:
    """Starts the process, and fails when it ends."""

    def __init__(self, context: MemberContext, worker_id: str) -> None:
        self._context = context
        self._worker_id = worker_id
        self._process: asyncio.subprocess.Process | None = None

    def prepare(self) -> None:
        """There is nothing to load in this process."""

    async def start(self) -> str:
        """Raises:
        StartupError: the process cannot start, or says why it cannot serve.
        """
        python = self._context.config.vllm.python or sys.executable
        command = (python, "-m", PROCESS)
        try:
            # A group of its own: vLLM has processes, too, which must not be left behind.
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise StartupError(f"vllm.python: {python!r} cannot be run: {error.strerror}") from None
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it has ended: there will be no answer
            self._process.stdin.write(await asyncio.to_thread(self._orders))
            await self._process.stdin.drain()
        answer = await self._answer()
        if (address := answer.get("address")) is not None:
            return str(address)
        if (problem := answer.get("problem")) is not None:
            raise StartupError(str(problem))
        status = await self._process.wait()
        raise StartupError(
            f"vllm.python: {' '.join(command)} has ended with status {status}; "
            f"the extra vllm-worker must be installed there: {command[0]} -m {install_command('vllm-worker')}"
        )

    async def wait(self) -> None:
        """Runs until the process has failed or ended."""
        assert self._process is not None, "the member was not started"
        answer = await self._answer()
        status = await self._process.wait()
        raise Unavailable(answer.get("problem") or f"the process of vLLM has ended with status {status}")

    async def stop(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_S)
        with contextlib.suppress(ProcessLookupError):  # what is left of its group, if it was killed
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    def _orders(self) -> bytes:
        context = self._context
        orders = {
            "config": with_model(context.config).model_dump(mode="json"),
            "redis_url": context.redis_url,
            "host": context.host,
            "node_id": context.node_id,
            "name": self._worker_id,
            "cluster_key": context.cluster_key,
            "state_dir": context.state_dir,
        }
        return json.dumps(orders).encode() + b"\n"

    async def _answer(self) -> dict[str, Any]:
        """What the process says next; empty: it has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return dict(json.loads(line)) if line else {}
