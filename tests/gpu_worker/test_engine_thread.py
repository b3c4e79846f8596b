"""The engine on its thread. A gate before each batch stops it where a test wants it to."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import torch

from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.core.errors import InvalidArgument, ResourceExhausted, Unavailable
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.core.workflow.step_events import FinishReason
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.engine.engine_thread import EngineThread
from pbkv_cluster.gpu_worker.engine.output import Output
from pbkv_cluster.gpu_worker.engine.sequence import Chunk, StepRequest
from pbkv_cluster.gpu_worker.model.loading import LoadedModel
from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner
from tests.gpu_worker.engine_harness import decode, make_engine, request, run

PATIENCE_S = 30.0


class GatedRunner(TorchRunner):
    """Runs batches only while its gate is open, and fails on demand."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Event()
        self.fault: Exception | None = None

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        self.at_gate.set()
        assert self.gate.wait(PATIENCE_S)
        if self.fault is not None:
            raise self.fault
        return super().run(chunks)


@asynccontextmanager
async def running(model: LoadedModel, **fields: Any) -> AsyncIterator[tuple[EngineThread, GatedRunner]]:
    config = EngineConfig(**{"gpu_blocks": 64, "host_blocks": 32, **fields})
    runner = GatedRunner(model, config, torch.device("cpu"))
    runner.allocate()
    engine = Engine(runner, config, CacheConfig(), SystemClock(), decode, worker_id="w")
    thread = EngineThread(engine, asyncio.get_running_loop())
    thread.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield thread, runner
    finally:
        runner.gate.set()
        await thread.stop()


@pytest.fixture
def llama(models: dict[str, LoadedModel]) -> LoadedModel:
    return models["llama"]


async def collect(thread: EngineThread, step: StepRequest) -> list[Output]:
    return [output async for output in thread.stream(step)]


def tokens(outputs: Sequence[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def in_use(engine: Engine) -> tuple[int, int, int]:
    """Sequences running and waiting, and GPU blocks that they hold."""
    return len(engine.scheduler.running), engine.scheduler.waiting, engine.cache.locked_blocks(Tier.GPU)


async def test_concurrent_streams_give_what_each_gives_alone(llama: LoadedModel) -> None:
    steps = [request(llama, f"r{n}", list(range(n + 1, 3 * n + 20)), workflow=f"w{n}", max_tokens=10 + n) for n in range(6)]
    alone = {step.id: run(make_engine(llama), step)[step.id].tokens for step in steps}
    async with running(llama) as (thread, _):
        streams = await asyncio.gather(*(collect(thread, step) for step in steps))
        assert await thread.call(in_use) == (0, 0, 0)
    for step, outputs in zip(steps, streams, strict=True):
        assert tokens(outputs) == alone[step.id]
        assert [output.finished for output in outputs] == [None] * (len(outputs) - 1) + [FinishReason.LENGTH]
        usage = outputs[-1].usage
        assert usage is not None
        assert usage.generated_tokens == len(alone[step.id])


async def test_outputs_arrive_while_the_step_runs(llama: LoadedModel) -> None:
    async with running(llama) as (thread, runner), aclosing(thread.stream(request(llama, "r", [1, 2, 3]))) as stream:
        first = await anext(stream)
        assert len(first.tokens) == 1
        assert first.finished is None
        runner.gate.clear()


async def test_closing_a_stream_cancels_its_step(llama: LoadedModel) -> None:
    async with running(llama, max_running=1) as (thread, _):
        waiting = asyncio.create_task(collect(thread, request(llama, "next", [5] * 40, workflow="w2")))
        async with aclosing(thread.stream(request(llama, "r", [1] * 40, max_tokens=900))) as stream:
            await anext(stream)
        assert len(tokens(await waiting)) == 8
        assert await thread.call(in_use) == (0, 0, 0)


async def test_cancelling_the_reader_cancels_a_step_that_runs_and_one_that_waits(llama: LoadedModel) -> None:
    async with running(llama, max_running=1) as (thread, runner):
        runner.gate.clear()
        readers = [asyncio.create_task(collect(thread, request(llama, f"r{n}", [n] * 40, max_tokens=500))) for n in (1, 2)]
        await asyncio.to_thread(runner.at_gate.wait, PATIENCE_S)
        for reader in readers:
            reader.cancel()
        runner.gate.set()
        results = await asyncio.gather(*readers, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        assert await thread.call(in_use) == (0, 0, 0)


async def test_a_step_that_is_refused_raises_and_harms_no_other(llama: LoadedModel) -> None:
    async with running(llama, max_running=1, max_waiting=1) as (thread, runner):
        with pytest.raises(InvalidArgument, match="prompt: must not be empty"):
            await collect(thread, request(llama, "empty", []))
        with pytest.raises(InvalidArgument, match="sent: id 9999 at position 0 is outside the vocabulary"):
            await collect(thread, request(llama, "alien", [1], sent=[9999]))
        runner.gate.clear()
        first = asyncio.create_task(collect(thread, request(llama, "first", [1] * 20)))
        await asyncio.to_thread(runner.at_gate.wait, PATIENCE_S)
        others = [asyncio.create_task(collect(thread, request(llama, name, [2] * 20))) for name in ("second", "third")]
        await asyncio.sleep(0)  # both ask before the engine can answer
        runner.gate.set()
        with pytest.raises(ResourceExhausted, match=r"the worker's queue is full \(1 steps, engine.max_waiting\)"):
            await others[1]
        assert len(tokens(await first)) == len(tokens(await others[0])) == 8


async def test_the_error_of_a_call_is_the_callers_alone(llama: LoadedModel) -> None:
    def wrong(engine: Engine) -> None:
        raise LookupError("not here")

    async with running(llama) as (thread, _):
        with pytest.raises(LookupError, match="not here"):
            await thread.call(wrong)
        assert not thread.failed.done()
        assert len(tokens(await collect(thread, request(llama, "r", [1, 2, 3])))) == 8


async def test_commands_run_in_order_of_arrival(llama: LoadedModel) -> None:
    seen: list[int] = []
    async with running(llama) as (thread, _):
        for n in range(50):
            thread.post(lambda engine, n=n: seen.append(n))  # type: ignore[misc]
        await thread.call(lambda engine: None)
    assert seen == list(range(50))


async def test_an_engine_that_fails_fails_every_stream_and_later_call(llama: LoadedModel) -> None:
    async with running(llama, max_running=1) as (thread, runner):
        runner.gate.clear()
        readers = [asyncio.create_task(collect(thread, request(llama, f"r{n}", [n] * 20))) for n in (1, 2)]
        await asyncio.to_thread(runner.at_gate.wait, PATIENCE_S)
        late = asyncio.create_task(thread.call(in_use))
        await asyncio.sleep(0)
        runner.fault = RuntimeError("CUDA error: the device is gone")
        runner.gate.set()
        for reader in readers:
            with pytest.raises(Unavailable, match=r"the worker's engine has|the device is gone"):
                await reader
        with pytest.raises(Unavailable, match="the worker's engine has ended"):
            await late
        with pytest.raises(RuntimeError, match="the device is gone"):
            await asyncio.shield(thread.failed)
        with pytest.raises(Unavailable, match="the worker's engine has ended"):
            await thread.call(in_use)
        with pytest.raises(Unavailable, match="the worker's engine has ended"):
            await collect(thread, request(llama, "later", [1]))


async def test_the_error_of_a_posted_command_ends_the_engine(llama: LoadedModel) -> None:
    def wrong(engine: Engine) -> None:
        raise LookupError("a defect")

    async with running(llama) as (thread, _):
        thread.post(wrong)
        with pytest.raises(LookupError, match="a defect"):
            await asyncio.shield(thread.failed)


async def test_stopping_fails_open_streams_and_later_calls(llama: LoadedModel) -> None:
    async with running(llama) as (thread, runner):
        stream = thread.stream(request(llama, "r", [1] * 20, max_tokens=900))
        await anext(stream)
        runner.at_gate.clear()
        runner.gate.clear()
        await asyncio.to_thread(runner.at_gate.wait, PATIENCE_S)  # the engine is busy now
        stopping = asyncio.create_task(thread.stop())
        await asyncio.sleep(0)
        late = asyncio.create_task(thread.call(in_use))
        step = asyncio.create_task(collect(thread, request(llama, "late", [1])))
        await asyncio.sleep(0)
        runner.gate.set()
        await stopping
        with pytest.raises(Unavailable, match="the worker is stopping"):
            async for _ in stream:
                pass
        with pytest.raises(Unavailable):
            await late
        with pytest.raises(Unavailable):
            await step
        assert not thread.failed.done()
