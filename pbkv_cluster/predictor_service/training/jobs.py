"""Learning that takes seconds, as jobs, so that forecasts need not wait for it.

The predictor's owner chooses the trainer: `AtOnce` if equal events must give equal forecasts, `ProcessTrainer` in a service.
"""

import asyncio
import logging
import os
import pickle
import sys
from abc import ABC, abstractmethod
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

log = logging.getLogger(__name__)

R = TypeVar("R")


class TrainingJob(ABC, Generic[R]):
    """All that a training needs. The job and its result must be cheap to pickle, since that is done on the event loop."""

    @abstractmethod
    def run(self) -> R:
        """Trains. Equal jobs give equal results."""


class Trainer(ABC):
    """Runs jobs."""

    @abstractmethod
    def submit(self, job: TrainingJob[R], done: Callable[[R | None], None]) -> None:
        """Has a job run, now or later.

        Args:
            job: to run.
            done: called with the result on the caller's thread, or with None if the job failed; not called if the trainer is
                closed before.
        """


class AtOnce(Trainer):
    """Runs a job in `submit`, which raises the job's error."""

    def submit(self, job: TrainingJob[R], done: Callable[[R | None], None]) -> None:
        done(job.run())


class ProcessTrainer(Trainer):
    """Runs one job at a time, each in a process of its own with one thread and low priority, while `run` runs.

    Not a thread, because a training would hold the interpreter's lock too often for forecasts. A new process for each job,
    since trainings are rare and its memory is given back. It ends with this process, however this one ends: see `process`.
    """

    def __init__(self) -> None:
        self._jobs: deque[tuple[TrainingJob[Any], Callable[[Any], None]]] = deque()
        self._submitted = asyncio.Event()

    def submit(self, job: TrainingJob[R], done: Callable[[R | None], None]) -> None:
        self._jobs.append((job, done))
        self._submitted.set()

    async def run(self) -> NoReturn:
        """Runs jobs until cancelled; then no process is left."""
        while True:
            await self._submitted.wait()
            self._submitted.clear()
            while self._jobs:
                job, done = self._jobs.popleft()
                done(await _run(job))


async def _run(job: TrainingJob[R]) -> R | None:
    payload = pickle.dumps(job)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    module = f"{__package__}.process"
    try:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, stdin=PIPE, stdout=PIPE, env=environment)
    except OSError as error:
        log.error("no training: a process for it cannot be started: %s", error.strerror)
        return None
    try:
        answer = await _exchange(process, payload)
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        await process.communicate()  # reads the rest of the pipe, so that it is closed too
    if process.returncode != 0 or not answer:
        log.error("training ended without a result: its process returned %s", process.returncode)
        return None
    result: R
    result, failure = pickle.loads(answer)
    if failure:
        log.error("training failed:\n%s", failure)
        return None
    return result


async def _exchange(process: Process, payload: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(payload)
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has ended already: there is no answer
    answer = await process.stdout.read()
    await process.wait()
    return answer
