"""A worker as its peers see it: over gRPC."""

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode, aio

from pbkv_cluster.core.blocks import BlockLabel
from pbkv_cluster.core.clock import ManualClock, SystemClock
from pbkv_cluster.core.errors import InvalidArgument, StartupError, Unavailable
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.locations.residency import Residency
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.core.tokens import BLOCK_TOKENS, unpack
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gpu_worker.engine.sequence import Chunk
from pbkv_cluster.gpu_worker.kv import arena_region as arena_module
from pbkv_cluster.gpu_worker.model import torch_runner
from pbkv_cluster.gpu_worker.model.torch_runner import TorchRunner
from pbkv_cluster.gpu_worker.server import WorkerServer
from pbkv_cluster.rpc.services import HOST_STORE, FixedServices
from pbkv_cluster.rpc.v1 import store_pb2, store_pb2_grpc, types_pb2, worker_pb2, workflow_pb2
from pbkv_cluster.store.arena.arena_view import ArenaView
from pbkv_cluster.store.arena.layout import RegionLayout
from tests.gpu_worker.worker_rig import PATIENCE_S, Rig, ScriptedPredictor, config, host_store, serving, step
from tests.polling import eventually

LENGTH, STOP = types_pb2.FINISH_REASON_LENGTH, types_pb2.FINISH_REASON_STOP
SAMPLED = {"temperature": 1.0, "top_p": 0.95, "seed": 42}


@pytest.fixture
def codec(llama: Path) -> TextCodec:
    return TextCodec.load(str(llama))


def prompt(tokens: int, seed: int = 1) -> list[int]:
    """A prompt whose first block differs from that of any other seed."""
    return [(seed * 131 + n * 17) % 4000 + 50 for n in range(tokens)]


async def refusal(rig: Rig, request: worker_pb2.RunStepRequest) -> tuple[StatusCode, str]:
    try:
        answer = await rig.run(request)
    except aio.AioRpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError(f"not refused: {answer}")


# --- a step ---


async def test_a_step_streams_tokens_and_text_and_ends_with_its_usage(llama: Path, codec: TextCodec) -> None:
    async with serving(config(llama), worker_id="worker-7") as rig:
        request = step(prompt(40), sampling={"max_tokens": 12})
        first = await rig.run(request)
        assert len(first.tokens) == 12
        assert first.events == 13
        assert first.text == codec.decode(first.tokens)
        assert first.reason == LENGTH
        usage = first.usage
        assert (usage.prompt_tokens, usage.computed_tokens, usage.generated_tokens) == (40, 40, 12)
        assert usage.worker_id == "worker-7"
        assert usage.delivered == usage.captured == {}

        again = await rig.run(step(prompt(40), sampling={"max_tokens": 12}))
        assert (again.tokens, again.text) == (first.tokens, first.text)
        assert again.usage.delivered == again.usage.captured == {Tier.GPU: 32}
        assert again.usage.computed_tokens == 8
        status = await rig.status()
        assert (status.worker_id, status.running, status.waiting) == ("worker-7", 0, 0)
        assert status.engine_steps == 24
        assert status.prefill_tokens_per_s > 0
        assert status.store.policy == "pbkv"
        guard = status.store.guard
        assert guard.prompt_tokens == 80
        assert all(each.tokens == each.gpu_tokens == 32 for each in (guard.hits, guard.lru_hits, guard.policy_hits))
        assert not guard.lru_active


async def test_facts_about_a_worker(llama: Path) -> None:
    async with serving(config(llama, engine={"gpu_blocks": 20, "host_blocks": 5})) as rig:
        facts = rig.facts
        assert facts.vocabulary == 4096
        assert facts.max_context == 19 * BLOCK_TOKENS  # a sequence fits together with the block that its next token begins
        assert (facts.gpu_blocks, facts.host_blocks) == (20, 5)
        assert facts.block_bytes == 2 * 2 * BLOCK_TOKENS * 2 * 16 * 8
        assert facts.namespace.dtype == "float64"
        for tier, capacity in ((Tier.GPU, 20), (Tier.HOST, 5)):
            stat = await rig.stat(tier)
            assert (stat.capacity_blocks, stat.used_blocks, stat.block_bytes) == (capacity, 0, facts.block_bytes)
    async with serving(config(llama)) as rig:
        assert rig.facts.max_context == (64 - 1) * BLOCK_TOKENS


async def test_a_stop_string_ends_a_step_before_it(llama: Path, codec: TextCodec) -> None:
    words = unpack(codec.encode("so far, so good END and on"))
    async with serving(config(llama, engine={"allow_forced_output": True})) as rig:
        sampling: dict[str, Any] = {"forced_output": words, "max_tokens": 100}
        whole = await rig.run(step(prompt(20), sampling=sampling))
        assert (whole.tokens, whole.text, whole.reason) == (words, "so far, so good END and on", LENGTH)
        stopped = await rig.run(step(prompt(20), sampling={**sampling, "stop": ["never", "END"]}))
        assert (stopped.text, stopped.reason) == ("so far, so good ", STOP)
        assert stopped.tokens == words[: len(stopped.tokens)]
        assert "END" in codec.decode(stopped.tokens)
        assert "END" not in codec.decode(stopped.tokens[:-1])
        assert stopped.usage.generated_tokens == len(stopped.tokens)


async def test_a_special_token_can_be_a_stop_string(llama: Path, codec: TextCodec) -> None:
    words = unpack(codec.encode("so far<|tool|> and on"))
    async with serving(config(llama, engine={"allow_forced_output": True})) as rig:
        sampling: dict[str, Any] = {"forced_output": words, "max_tokens": 100}
        whole = await rig.run(step(prompt(20), sampling=sampling))
        assert (whole.text, whole.reason) == ("so far and on", LENGTH), "it is not part of the text"
        stopped = await rig.run(step(prompt(20), sampling={**sampling, "stop": ["<|tool|>"]}))
        assert (stopped.text, stopped.reason) == ("so far", STOP)


async def test_the_end_of_sequence_token_ends_a_step_unless_it_is_ignored(llama: Path, tmp_path: Path) -> None:
    async with serving(config(llama)) as rig:
        tokens = (await rig.run(step(prompt(30), sampling={"max_tokens": 20}))).tokens
    at = next(at for at in range(3, 20) if tokens[at] not in tokens[:at])
    path = Path(shutil.copytree(llama, tmp_path / "ends"))
    generation = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [0, tokens[at]]}))
    async with serving(config(path)) as rig:
        ended = await rig.run(step(prompt(30), sampling={"max_tokens": 20, "ignore_eos": False}))
        assert (ended.tokens, ended.reason) == (tokens[: at + 1], STOP)
        on = await rig.run(step(prompt(30), sampling={"max_tokens": 20, "ignore_eos": True}))
        assert (on.tokens, on.reason) == (tokens, LENGTH)


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
async def test_a_step_continues_on_another_worker_as_it_would_have(
    llama: Path, codec: TextCodec, sampling: dict[str, Any]
) -> None:
    sampling = {**sampling, "max_tokens": 20}
    async with serving(config(llama), "first") as first, serving(config(llama), "second") as second:
        whole = await first.run(step(prompt(37), sampling=sampling))
        assert len(set(whole.tokens)) > 3
        for rig in (first, second):  # with the blocks cached, and without
            for cut in (1, 11, 19):
                rest = await rig.run(step(prompt(37), sampling=sampling, sent=whole.tokens[:cut]))
                assert rest.tokens == whole.tokens[cut:]
                assert rest.text == whole.text == codec.decode(whole.tokens)
                assert rest.reason == LENGTH
                assert rest.usage.prompt_tokens == 37
                assert rest.usage.generated_tokens == 20
        done = await second.run(step(prompt(37), sampling=sampling, sent=whole.tokens))
        assert (done.tokens, done.text, done.reason) == ([], whole.text, LENGTH)
        assert await second.idle()


async def test_a_step_continues_inside_a_stop_string(llama: Path, codec: TextCodec) -> None:
    words = unpack(codec.encode("a")) + [token for letter in "<<END>>b" for token in unpack(codec.encode(letter))]
    sampling = {"forced_output": words, "stop": ["<<END>>"]}
    async with serving(config(llama, engine={"allow_forced_output": True})) as rig:
        for cut in range(1, 8):
            rest = await rig.run(step(prompt(20), sampling=sampling, sent=words[:cut]))
            assert (rest.tokens, rest.text, rest.reason) == (words[cut:8], "a", STOP)
        over = await rig.run(step(prompt(20), sampling=sampling, sent=words[:8]))
        assert (over.tokens, over.text, over.reason) == ([], "a", STOP)


# --- refusals ---


async def test_an_invalid_request_is_refused_with_the_field(llama: Path) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("request_id: ", {"request_id": ""}),
        ("prompt: must not be empty", {"prompt": []}),
        ("prompt: has 1008 tokens", {"prompt": [1] * 1008}),
        ("prompt.token_ids: id 4096 at position 1", {"prompt": [1, 4096]}),
        ("prompt.token_ids: id -1 at position 0", {"prompt": [-1, 5]}),
        ("sent: id 5000 at position 1", {"sent": [1, 5000]}),
        ("sent: id -7 at position 0", {"sent": [-7]}),
        ("sampling.max_tokens: ", {"sampling": {"max_tokens": 0}}),
        ("sampling.temperature: ", {"sampling": {"temperature": -0.5}}),
        ("sampling.temperature: ", {"sampling": {"temperature": float("nan")}}),
        ("sampling.top_p: ", {"sampling": {"top_p": 0.0}}),
        ("sampling.top_p: ", {"sampling": {"top_p": 1.5}}),
        ("sampling.stop: ", {"sampling": {"stop": [""]}}),
        ("sampling.stop: ", {"sampling": {"stop": ["x"] * 17}}),
        ("sampling.forced_output: ", {"sampling": {"forced_output": []}}),
        ("sampling.forced_output: id 4096 at position 1", {"sampling": {"forced_output": [1, 4096]}}),
    ]
    requests = [(problem, step(**{"prompt": [1, 2, 3], **fields})) for problem, fields in wrong]
    for field in ("prompt", "sent"):
        broken = step([1, 2, 3])
        getattr(broken, field).data = b"12345"
        requests.append((f"{field}.data: 5 bytes are not a whole number of int32 token ids", broken))
    async with serving(config(llama, engine={"allow_forced_output": True})) as rig:
        for problem, request in requests:
            code, details = await refusal(rig, request)
            assert code is StatusCode.INVALID_ARGUMENT, problem
            assert details.startswith(problem), details
        assert await rig.idle()
        assert len((await rig.run(step([1, 2, 3]))).tokens) == 8


async def test_replay_is_refused_unless_it_is_allowed(llama: Path) -> None:
    async with serving(config(llama)) as rig:
        code, details = await refusal(rig, step(prompt(20), sampling={"forced_output": [1, 2]}))
        assert code is StatusCode.FAILED_PRECONDITION
        assert details.startswith("sampling.forced_output: this server does not allow replay")


async def test_a_full_queue_refuses_and_queued_steps_run(llama: Path) -> None:
    async with serving(config(llama, engine={"max_running": 1, "max_waiting": 1})) as rig:
        running = rig.call(step(prompt(20), sampling={"max_tokens": 900}))
        await running.read()
        queued = asyncio.create_task(rig.run(step(prompt(20, seed=2))))

        async def one_waits() -> bool:
            return (await rig.status()).waiting == 1

        await eventually(one_waits)
        code, details = await refusal(rig, step(prompt(20, seed=3)))
        assert code is StatusCode.RESOURCE_EXHAUSTED
        assert "engine.max_waiting" in details
        running.cancel()
        assert len((await queued).tokens) == 8


# --- the end of a step ---


async def test_cancelling_frees_running_and_waiting_steps(llama: Path) -> None:
    async with serving(config(llama, engine={"max_running": 1})) as rig:
        running = rig.call(step(prompt(100), sampling={"max_tokens": 900}))
        await running.read()
        waiting = rig.call(step(prompt(100, seed=2)))

        async def both_are_there() -> bool:
            status = await rig.status()
            return (status.running, status.waiting) == (1, 1)

        await eventually(both_are_there)
        assert (await rig.stat(Tier.GPU)).locked_blocks >= 7
        waiting.cancel()

        async def one_is_left() -> bool:
            status = await rig.status()
            return (status.running, status.waiting) == (1, 0)

        await eventually(one_is_left)
        running.cancel()
        await eventually(rig.idle)
        assert (await rig.run(step(prompt(100), sampling={"max_tokens": 1}))).delivered == 96  # what it had computed


async def test_two_steps_of_one_name_do_not_disturb_each_other(llama: Path) -> None:
    async with serving(config(llama)) as rig:
        sampling = {"max_tokens": 60}
        alone = await rig.run(step(prompt(30), sampling=sampling))
        first = rig.call(step(prompt(30), request_id="same", sampling={"max_tokens": 900}))
        await first.read()
        second = rig.call(step(prompt(30), request_id="same", sampling=sampling))
        tokens = unpack((await second.read()).tokens.token_ids.data)
        first.cancel()
        while (event := await second.read()) is not aio.EOF:
            tokens += unpack(event.tokens.token_ids.data)
        assert tokens == alone.tokens
        await eventually(rig.idle)


async def ending(call: Any) -> tuple[StatusCode, str]:
    """Reads a call to its end and returns its status."""
    try:
        while await call.read() is not aio.EOF:
            pass
    except (aio.AioRpcError, asyncio.CancelledError):
        pass
    return await call.code(), await call.details()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No batch runs while it is cleared."""
    gate, run = threading.Event(), TorchRunner.run

    def gated(self: TorchRunner, chunks: Sequence[Chunk]) -> list[int]:
        assert gate.wait(PATIENCE_S)
        return run(self, chunks)

    gate.set()
    monkeypatch.setattr(TorchRunner, "run", gated)
    return gate


async def test_stopping_ends_open_steps(llama: Path, gate: threading.Event) -> None:
    async with serving(config(llama)) as rig:
        call = rig.call(step(prompt(20), sampling={"max_tokens": 900}))
        await call.read()
        gate.clear()
        stopping = asyncio.create_task(rig.worker.stop())
        code, _ = await ending(call)
        assert code in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.ABORTED)  # for a gateway, the worker is lost
        gate.set()
        await stopping


async def test_a_worker_that_was_never_started_can_be_stopped(llama: Path) -> None:
    await WorkerServer(config(llama), "w", SystemClock()).stop()


async def test_a_failing_device_fails_steps_and_is_reported(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(config(llama)) as rig:
        call = rig.call(step(prompt(20), sampling={"max_tokens": 900}))
        await call.read()

        def lost(*_: object) -> list[int]:
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(TorchRunner, "run", lost)
        assert await ending(call) == (StatusCode.UNAVAILABLE, "the worker's engine has failed: the device is gone")
        with pytest.raises(RuntimeError, match="the device is gone"):
            await rig.worker.wait()
        code, _ = await refusal(rig, step(prompt(20)))
        assert code is StatusCode.UNAVAILABLE
        with pytest.raises(Unavailable):
            await rig.worker.residency()


# --- the cache ---


async def test_tenants_do_not_share(llama: Path) -> None:
    async with serving(config(llama)) as rig:
        for tenant, delivered in (("a", 0), ("b", 0), ("", 0), ("a", 48), ("b", 48)):
            assert (await rig.run(step(prompt(50), tenant=tenant))).delivered == delivered
        assert await rig.prefetch(prompt(50), tenant="a") == (0, 48)
        assert await rig.prefetch(prompt(50), tenant="c") == (0, 0)


async def test_a_retired_workflow_is_evicted_first(llama: Path) -> None:
    one = {"max_tokens": 1}
    async with serving(config(llama, engine={"gpu_blocks": 16})) as rig:
        await rig.run(step(prompt(64, seed=1), workflow_id="stays", sampling=one))
        await rig.run(step(prompt(64, seed=2), workflow_id="ends", sampling=one))
        await rig.retire("ends")
        await rig.retire("never heard of")
        await rig.run(step(prompt(160, seed=3), workflow_id="next", sampling=one))
        decisions = await rig.decisions()
        assert decisions["evict_retired"] > 0
        assert "evict_active" not in decisions
        # The other workflow is older, yet all its blocks are still there.
        assert (await rig.run(step(prompt(64, seed=1), workflow_id="stays", sampling=one))).delivered == 48


async def test_tool_calls_are_taken_and_their_wrong_fields_named(llama: Path) -> None:
    started = workflow_pb2.ReportToolCallRequest.PHASE_STARTED
    async with serving(config(llama)) as rig:
        await rig.run(step(prompt(32, seed=1), workflow_id="waits"))
        good: dict[str, Any] = {"workflow_id": "waits", "tool": "search", "phase": started, "expected_s": 2.0}
        await rig.stub.ReportToolCall(workflow_pb2.ReportToolCallRequest(**good))
        await rig.stub.ReportToolCall(workflow_pb2.ReportToolCallRequest(**{**good, "workflow_id": "never heard of"}))
        for field, value in (("workflow_id", ""), ("tool", ""), ("phase", 0), ("expected_s", -1.0)):
            with pytest.raises(aio.AioRpcError, match=field) as refused:
                await rig.stub.ReportToolCall(workflow_pb2.ReportToolCallRequest(**{**good, field: value}))
            assert refused.value.code() is StatusCode.INVALID_ARGUMENT
        await rig.run(step(prompt(48, seed=1), workflow_id="waits"))


async def test_blocks_are_loaded_from_the_host_tier_by_prefetch_and_on_demand(llama: Path) -> None:
    one = {"max_tokens": 1}
    async with serving(config(llama, engine={"gpu_blocks": 16, "host_blocks": 32})) as rig:
        answers = [await rig.run(step(prompt(112, seed=seed), workflow_id=f"w{seed}", sampling=one)) for seed in (1, 2, 3)]
        assert (await rig.stat(Tier.HOST)).used_blocks >= 5
        free, before = 16 - (await rig.stat(Tier.GPU)).used_blocks, await rig.decisions()
        loaded, resident = await rig.prefetch(prompt(112, seed=1))
        assert loaded <= free * BLOCK_TOKENS
        assert resident < 112
        assert (await rig.decisions())["evict_active"] == before["evict_active"]  # no active block is evicted
        for workflow in ("w1", "w2", "w3"):
            await rig.retire(workflow)
        assert (await rig.prefetch(prompt(112, seed=1)))[1] == 112
        assert await rig.prefetch(prompt(112, seed=1)) == (0, 112)
        for seed, answer in enumerate(answers, 1):
            assert (await rig.run(step(prompt(112, seed=seed), sampling=one))).tokens == answer.tokens
        assert (await rig.run(step(prompt(112, seed=1), sampling=one))).delivered == 96


async def test_clear_drops_all_blocks_that_no_step_uses(llama: Path) -> None:
    async with serving(config(llama)) as rig:
        await rig.run(step(prompt(64, seed=1), sampling={"max_tokens": 1}))
        running = rig.call(step(prompt(64, seed=2), workflow_id="w2", sampling={"max_tokens": 900}))
        await running.read()
        assert await rig.clear() == 4
        assert (await rig.run(step(prompt(64, seed=2), sampling={"max_tokens": 1}))).delivered == 48
        running.cancel()
        await eventually(rig.idle)
        assert await rig.clear() >= 4
        assert (await rig.stat(Tier.GPU)).used_blocks == 0
        assert (await rig.run(step(prompt(64, seed=1), sampling={"max_tokens": 1}))).delivered == 0


async def test_a_worker_has_no_arena_to_lease(llama: Path) -> None:
    async with serving(config(llama)) as rig:
        with pytest.raises(aio.AioRpcError, match="ask the node's host store") as error:
            await rig.store.LeaseArena(store_pb2.LeaseArenaRequest(worker_id="x", bytes=1))
        assert error.value.code() is StatusCode.FAILED_PRECONDITION


async def test_every_change_of_a_block_is_reported(llama: Path) -> None:
    reported: dict[bytes, Residency] = {}

    def report(label: BlockLabel, residency: Residency) -> None:
        reported[label.key] = residency

    async with serving(config(llama, engine={"gpu_blocks": 12, "host_blocks": 8}), on_change=report) as rig:
        for seed in (1, 2, 1, 3, 4, 2):
            await rig.run(step(prompt(90, seed=seed), workflow_id=f"w{seed}"))
            if seed == 3:
                await rig.retire("w1")
        residency = await rig.worker.residency()
        assert residency == {key: each for key, each in reported.items() if each.tiers}
        assert {Tier.GPU, Tier.HOST} == set().union(*(each.tiers for each in residency.values()))
        await rig.clear()
        assert not any(each.tiers for each in reported.values())


# --- the predictor ---


def forecast(workflow: str, epoch: int, ended: bool = False) -> Forecast:
    steps = () if ended else (StepForecast({"a": 0.5, "b": 0.25}, 0.9),)
    return Forecast(workflow, epoch, made_at=1.0, steps=steps, ended=ended)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries to find the host store at once."""
    monkeypatch.setattr(arena_module, "PAUSE_S", 0.01)


async def applied(rig: Rig, count: int) -> None:
    async def reached() -> bool:
        return (await rig.status()).forecasts_applied == count

    await eventually(reached)


async def test_forecasts_of_its_workflows_are_applied(llama: Path) -> None:
    predictor = ScriptedPredictor()
    await predictor.start()
    async with serving(config(llama, engine={"gpu_blocks": 16}), "worker-3", predictor=predictor) as rig:
        await eventually(lambda: [name for name, _ in predictor.subscribers] == ["worker-3"])
        for seed in (1, 2):
            await rig.run(step(prompt(64, seed=seed), workflow_id=f"w{seed}", sampling={"max_tokens": 1}))
        predictor.send([forecast("w1", 5), forecast("elsewhere", 1)])
        await applied(rig, 1)
        predictor.send([forecast("w1", 5), forecast("w1", 4), forecast("w1", 6), forecast("w2", 1)])
        await applied(rig, 3)
        predictor.send([forecast("w2", 2, ended=True)])
        await applied(rig, 4)
        await rig.run(step(prompt(160, seed=3), workflow_id="w3", sampling={"max_tokens": 1}))
        assert "evict_active" not in await rig.decisions()  # the blocks of w2, which has ended, were evicted instead
    await predictor.stop()


async def test_steps_run_while_the_predictor_is_away_and_forecasts_resume_with_it(llama: Path) -> None:
    predictor = ScriptedPredictor()
    async with serving(config(llama), predictor=predictor) as rig:
        for epoch, ends in enumerate(("killed", "fails", "killed"), 1):
            assert len((await rig.run(step(prompt(30)))).tokens) == 8
            await predictor.start()
            await eventually(lambda: len(predictor.subscribers) == 1)
            predictor.send([forecast("w", epoch)])
            await applied(rig, epoch)
            if ends == "fails":
                predictor.fail()
            await predictor.stop()
        assert len((await rig.run(step(prompt(30)))).tokens) == 8


async def test_a_directory_that_does_not_answer_is_asked_again(llama: Path) -> None:
    predictor = ScriptedPredictor()
    await predictor.start()

    class Directory:
        asked = 0

        async def service_address(self, name: str) -> str | None:
            self.asked += 1
            if self.asked < 5:
                raise Unavailable("Redis is away")
            return await predictor.service_address(name)

    async with serving(config(llama), predictor=Directory()) as rig:
        await eventually(lambda: len(predictor.subscribers) == 1)
        await rig.run(step(prompt(30)))
        predictor.send([forecast("w", 1)])
        await applied(rig, 1)
    await predictor.stop()


# --- the host store ---


def at(address: str) -> FixedServices:
    return FixedServices({HOST_STORE: address})


async def test_the_host_tier_is_in_the_nodes_arena(llama: Path) -> None:
    settings = config(llama, engine={"gpu_blocks": 12, "host_blocks": 16})
    directory: dict[str, str] = {}
    async with (
        host_store(1 << 20, directory_of_workers=directory) as (arena, address),
        serving(settings, "w1", host_store=at(address)) as one,
        serving(settings, "w2", host_store=at(address)) as two,
    ):
        regions = arena.regions()
        assert set(regions) == {"w1", "w2"}
        assert all(region.size >= 16 * one.facts.block_bytes for region in regions.values())

        for seed in (1, 2):
            await one.run(step(prompt(120, seed=seed), sampling={"max_tokens": 1}))
        assert (await one.stat(Tier.HOST)).used_blocks > 0
        view = ArenaView(arena.path)
        await eventually(lambda: any(view.regions()["w1"].headers()))
        assert not any(view.regions()["w2"].headers())
        view.close()

        await two.run(step(prompt(120, seed=2), sampling={"max_tokens": 1}))

        directory.update(w1=one.facts.address, w2=two.facts.address)
        async with aio.insecure_channel(address) as channel:
            stub = store_pb2_grpc.StoreServiceStub(channel)
            node = (await stub.Stat(store_pb2.StatRequest())).store
            for tier in node.tiers:
                kind = Tier.GPU if tier.tier == types_pb2.TIER_GPU else Tier.HOST
                parts = [await one.stat(kind), await two.stat(kind)]
                assert tier.capacity_blocks == sum(part.capacity_blocks for part in parts)
                assert tier.used_blocks == sum(part.used_blocks for part in parts) > 0
                assert tier.block_bytes == one.facts.block_bytes
            assert node.policy == "pbkv"
            used = [await rig.worker.residency() for rig in (one, two)]
            dropped = (await stub.Clear(store_pb2.ClearRequest())).dropped_blocks
            assert dropped == sum(len(each) for each in used)


async def test_the_lease_is_renewed_while_the_worker_lives(llama: Path) -> None:
    clock = ManualClock()
    async with host_store(1 << 20, lease_s=0.15, clock=clock) as (arena, address):
        async with serving(config(llama, engine={"host_blocks": 4}), host_store=at(address)):
            for _ in range(4):
                clock.advance(0.1)
                await eventually(lambda: arena.regions()["w"].expires_at == clock.now() + 0.15)
        clock.advance(0.2)
        assert arena.regions() == {}


@pytest.mark.usefixtures("impatient")
async def test_without_an_arena_a_worker_uses_its_own_memory(
    llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arena_module, "ATTEMPTS", 3)
    settings = config(llama, engine={"gpu_blocks": 12, "host_blocks": 16})

    async def demotes(rig: Rig) -> None:
        for seed in (1, 2):
            await rig.run(step(prompt(120, seed=seed), sampling={"max_tokens": 1}))
        assert (await rig.stat(Tier.HOST)).used_blocks > 0

    async with serving(settings, host_store=FixedServices({})) as rig:
        await demotes(rig)
    assert "no region from the node's host store (the node's host store has not been announced)" in caplog.text
    async with host_store(8192) as (arena, address), serving(settings, host_store=at(address)) as rig:
        await demotes(rig)
        assert [region.size for region in arena.regions().values()] == [0], "known, but without a region"
    assert "no room in the node's arena" in caplog.text


async def test_a_host_tier_whose_size_was_not_configured_has_what_fits(llama: Path) -> None:
    block_bytes = 0
    for capacity in (1 << 20, 4096, 1 << 28):
        async with host_store(capacity) as (_, address):
            settings = config(llama, engine={"gpu_blocks": 256, "host_blocks": -1})
            async with serving(settings, host_store=at(address)) as rig:
                block_bytes = rig.facts.block_bytes
                assert rig.facts.host_blocks == min(512, RegionLayout(512, block_bytes).slots_in(capacity))
                assert (await rig.stat(Tier.HOST)).capacity_blocks == rig.facts.host_blocks
                assert rig.worker.problems == ()
                if rig.facts.host_blocks:
                    await rig.run(step(prompt(120, seed=1), sampling={"max_tokens": 1}))
    assert 4096 < block_bytes < (1 << 20) < 512 * block_bytes < (1 << 28)
    async with host_store(1 << 20) as (_, address):
        settings = config(llama, engine={"gpu_blocks": 256, "host_blocks": 512})
        async with serving(settings, host_store=at(address)) as rig:
            assert rig.facts.host_blocks == 512
            assert "no room in the node's arena" in rig.worker.problems[0]


async def test_a_gpu_that_can_have_no_host_tier_serves_without_where_its_size_is_left_to_the_machine(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host_store(1 << 28) as (_, address):
        settings = config(llama, engine={"gpu_blocks": 256, "host_blocks": -1})
        async with serving(settings, host_store=at(address)) as rig:
            assert rig.facts.host_blocks == 512, "an earlier process has had a tier, and leaves its region"
        monkeypatch.setattr(torch_runner, "no_host_tier", lambda device: "the device has no CuPy")
        async with serving(settings, host_store=at(address)) as rig:
            assert rig.facts.host_blocks == 0
            assert rig.worker.problems == ("there is no host tier: the device has no CuPy",)
            await rig.run(step(prompt(120, seed=1), sampling={"max_tokens": 1}))
        settings = config(llama, engine={"gpu_blocks": 256, "host_blocks": 64})
        async with serving(settings, host_store=at(address)) as rig:
            assert rig.facts.host_blocks == 64, "what was asked for is had, or refused by the copies"


# --- starting ---


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("cache", "policy", "psychic"), ("cache", "host_policy", "psychic"), ("engine", "attention", "flashier")],
)
async def test_an_unknown_plug_in_is_refused_at_the_start(llama: Path, section: str, field: str, value: str) -> None:
    worker = WorkerServer(config(llama, **{section: {field: value}}), "w", SystemClock())
    with pytest.raises(InvalidArgument, match=f"{value!r} is unknown") as error:
        await worker.start("127.0.0.1")
    assert error.value.field == f"{section}.{field}"
    await worker.stop()


async def test_a_port_that_is_taken_is_refused_at_the_start(llama: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        worker = WorkerServer(config(llama), "w", SystemClock())
        with pytest.raises(StartupError, match="cannot listen"):
            await worker.start("127.0.0.1", taken.getsockname()[1])
        await worker.stop()
