"""Training in processes of its own: forecasts go on, failures are logged, and no process is left."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.experts.network import NetworkExpert
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.predictor_service.state import encoding
from pbkv_cluster.predictor_service.training.jobs import AtOnce, ProcessTrainer, TrainingJob
from tests.polling import eventually
from tests.predictor_service.training_jobs import Endless, Faulty, Killed, Square

CONFIG = PredictorConfig(model="pbkv", horizon=2)


@pytest.fixture
async def trainer() -> AsyncIterator[ProcessTrainer]:
    trainer = ProcessTrainer()
    task = asyncio.create_task(trainer.run())
    yield trainer
    await end(task)


async def end(task: asyncio.Task[NoReturn]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def result(trainer: ProcessTrainer, job: TrainingJob[int]) -> int | None:
    done: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
    trainer.submit(job, done.set_result)
    async with asyncio.timeout(60):
        return await done


def trainings() -> list[psutil.Process]:
    """Training processes of this one; other tests may have left services of theirs."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # one that ends meanwhile
            if "training.process" in " ".join(process.cmdline()):
                found.append(process)
    return found


async def pid_in(path: Path) -> int:
    await eventually(path.exists, 60)
    return int(path.read_text())  # noqa: ASYNC240  # some bytes


async def test_jobs_run_one_after_the_other_in_processes_of_their_own(trainer: ProcessTrainer) -> None:
    done: list[int | None] = []
    for number in range(3):
        trainer.submit(Square(number), done.append)
    await eventually(lambda: len(done) == 3, 60)
    assert done == [0, 1, 4]
    assert not trainings()


async def test_what_fails_is_told_and_the_next_job_runs(trainer: ProcessTrainer, caplog: pytest.LogCaptureFixture) -> None:
    assert await result(trainer, Faulty()) is None
    assert "ZeroDivisionError: a defect in a training" in caplog.text
    assert await result(trainer, Killed()) is None
    assert f"its process returned {-signal.SIGKILL}" in caplog.text
    assert await result(trainer, Square(3)) == 9


async def test_no_process_is_left_when_the_trainer_ends(tmp_path: Path) -> None:
    trainer = ProcessTrainer()
    task = asyncio.create_task(trainer.run())
    trainer.submit(Endless(tmp_path / "pid"), lambda result: None)
    pid = await pid_in(tmp_path / "pid")
    await end(task)
    assert not psutil.pid_exists(pid)


async def test_a_training_ends_with_its_owner_however_that_ends(tmp_path: Path) -> None:
    script = f"""
import asyncio
from pathlib import Path
from pbkv_cluster.predictor_service.training.jobs import ProcessTrainer
from tests.predictor_service.training_jobs import Endless
async def main():
    trainer = ProcessTrainer()
    trainer.submit(Endless(Path({str(tmp_path / "pid")!r})), lambda result: None)
    await trainer.run()
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", script, env=environment)
    try:
        process = psutil.Process(await pid_in(tmp_path / "pid"))
    finally:
        owner.kill()
        await owner.wait()
    await eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 30)


def test_at_once_what_fails_is_raised() -> None:
    done: list[int | None] = []
    AtOnce().submit(Square(2), done.append)
    assert done == [4]
    with pytest.raises(ZeroDivisionError):
        AtOnce().submit(Faulty(), done.append)


def report(server: PredictorServer, name: str, agents: str, ends: bool = True) -> None:
    kinds = [(EventKind.WORKFLOW_STARTED, "", 0), *((EventKind.STEP_STARTED, agent, at) for at, agent in enumerate(agents))]
    if ends:
        kinds.append((EventKind.WORKFLOW_ENDED, "", 0))
    events = [WorkflowEvent(kind, name, at, float(at), "app", agent, step=step) for at, (kind, agent, step) in enumerate(kinds)]
    assert server.service.report(events).accepted == len(events)


def survival(server: PredictorServer, name: str) -> float:
    """Forecast survival of a new workflow after two steps: 1 while nothing is known."""
    report(server, name, "ab", ends=False)
    (forecast,) = server.service.predict([name])
    return forecast.steps[0].survival


async def test_forecasts_are_answered_while_a_training_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(NetworkExpert, "training_due", lambda expert, now: Endless(tmp_path / "pid"))
    server = PredictorServer(CONFIG)
    await server.start("127.0.0.1", 0)
    report(server, "1", "ab")
    pid = await pid_in(tmp_path / "pid")
    for number in range(20):
        assert survival(server, f"w{number}") == 1.0
        await asyncio.sleep(0)
        assert psutil.pid_exists(pid)
    await server.stop()
    assert not psutil.pid_exists(pid)
    assert not caplog.records


def output_bias(server: PredictorServer) -> np.ndarray[Any, Any]:
    """Of the network in use."""
    state = encoding.from_bytes(server.service.predictor.dump())
    bias = state["workloads"]["app"]["experts"]["pbkv"]["network"]["arrays"]["outer.bias"]
    assert isinstance(bias, np.ndarray)
    return bias


@pytest.mark.slow
async def test_a_service_takes_a_network_into_use_and_keeps_it_when_a_later_training_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = PredictorServer(CONFIG)
    await server.start("127.0.0.1", 0)
    for number in range(12):
        report(server, f"{number}", "abc" if number % 2 else "acb")
    assert survival(server, "w") == 1.0
    numbers = count()
    await eventually(lambda: survival(server, f"w{next(numbers)}") != 1.0, 240)
    learnt = output_bias(server)
    monkeypatch.setattr(NetworkExpert, "training_due", lambda expert, now: Faulty())
    report(server, "x", "abc")
    await eventually(lambda: "a defect in a training" in caplog.text, 60)
    monkeypatch.undo()
    np.testing.assert_array_equal(output_bias(server), learnt)
    await server.stop()
    assert not trainings()
