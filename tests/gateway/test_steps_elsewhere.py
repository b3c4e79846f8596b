"""A workflow whose steps run on two real workers: each has the record of the whole, and one of them reports it at the end."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from pathlib import Path
from typing import Any

from pbkv_cluster.core.blocks import block_keys
from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.gpu_worker.server import WorkerFacts, WorkerServer
from pbkv_cluster.rpc.v1 import types_pb2
from pbkv_cluster.store.cluster_index import WorkerEntry
from tests.gateway.rig import PATIENCE_S, Rig, running
from tests.polling import eventually

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}


class Real:
    """A real worker that the gateway knows, and the logs that it would report."""

    def __init__(self, name: str, server: WorkerServer, facts: WorkerFacts) -> None:
        self.name, self.server, self.facts = name, server, facts
        self.logs: list[tuple[str, list[StepLog]]] = []

    async def steps(self, workflow: str) -> list[StepLog]:
        def look(engine: Engine) -> list[StepLog]:
            owner = engine.cache.workflows.find(workflow)
            return [] if owner is None else [copy(step) for step in owner.record.steps]

        return await self.server.thread.call(look)

    async def tokens(self, workflow: str) -> set[bytes]:
        """The segments of the workflow's record, by the tokens down to the end of each."""

        def look(engine: Engine) -> set[bytes]:
            owner = engine.cache.workflows.find(workflow)
            assert owner is not None
            return {b"".join(each.tokens for each in owner.record.trie.path(end)) for end in owner.record.segments}

        return await self.server.thread.call(look)


@asynccontextmanager
async def real_workers(rig: Rig, model: Path, *names: str) -> AsyncIterator[list[Real]]:
    engine = {"device": "cpu", "gpu_blocks": 64, "host_blocks": 0}
    config = Config.model_validate({"model": {"path": str(model), "dtype": "float64", "self_test": False}, "engine": engine})
    found = []
    for name in names:
        server = WorkerServer(config, name, SystemClock())
        rig.stack.push_async_callback(server.stop)
        facts = await server.start("127.0.0.1")
        worker = Real(name, server, facts)
        await server.thread.call(lambda engine, logs=worker.logs: _log(engine, logs))  # type: ignore[misc]
        entry = WorkerEntry(
            name, "1", "node", facts.address, os.getpid(), facts.namespace, facts.vocabulary, facts.max_context, 64, 0, 4096
        )
        await rig.directory.announce_worker(entry)
        found.append(worker)
    await rig.sees(lambda status: len(status.workers) == len(names), "the gateway knows the workers")
    yield found


def _log(engine: Engine, logs: list[Any]) -> None:
    engine.cache.workflows.on_ended = lambda ended: logs.append((ended.workflow, [copy(step) for step in ended.steps]))


def untimed(steps: list[StepLog]) -> list[tuple[Any, ...]]:
    return [
        (
            each.number,
            each.agent,
            each.came_from,
            each.follows,
            each.runs,
            each.symbol,
            each.output_blocks,
            each.ended_at >= 0.0,
        )
        for each in steps
    ]


async def test_a_workflow_on_two_workers_has_one_record(tmp_path: Path) -> None:
    build(tmp_path, "llama", **SIZES)
    places = ["a", "b", "b", "a", "b"]
    async with running() as rig, real_workers(rig, tmp_path, "a", "b") as (first, second):
        workflow = await rig.start_workflow()
        prompt = list(range(40))
        for number, place in enumerate(places):
            keys = block_keys(first.facts.namespace, pack(prompt))
            await rig.announce_blocks(place, keys)  # so the step goes there
            answer = await rig.run(
                workflow,
                agent_id=f"agent-{number % 2}",
                prompt=types_pb2.Prompt(token_ids=types_pb2.PackedTokens(data=pack(prompt))),
                sampling=types_pb2.Sampling(max_tokens=20, ignore_eos=True),
            )
            assert answer.usage.worker_id == place
            prompt = (
                [*prompt, *answer.token_ids, *range(100 + number, 130 + number)] if number != 2 else [*prompt[:32], *range(300)]
            )

        async def agree() -> bool:
            one, two = await first.steps(workflow), await second.steps(workflow)
            return len(one) == len(places) and untimed(one) == untimed(two)

        await eventually(agree, PATIENCE_S)
        one, two = await first.steps(workflow), await second.steps(workflow)
        assert [each.number for each in one] == list(range(len(places)))
        assert all(each.output_blocks and each.ended_at > each.began_at for each in one)
        assert await first.tokens(workflow) == await second.tokens(workflow)
        for each, other in zip(one, two, strict=True):
            assert abs(each.began_at - other.began_at) < PATIENCE_S
        await rig.end_workflow(workflow)
        assert not first.logs
        ((name, steps),) = second.logs
        assert name == workflow
        assert untimed(steps) == untimed(two)
