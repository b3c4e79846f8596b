"""Real workers, with a small random model, for a gateway's tests."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from copy import copy
from pathlib import Path
from typing import Any

from pbkv_cluster.core.clock import SystemClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.workflow.access_log import StepLog
from pbkv_cluster.gpu_worker.engine.engine import Engine
from pbkv_cluster.gpu_worker.facts import WorkerFacts
from pbkv_cluster.gpu_worker.server import WorkerServer
from pbkv_cluster.store.cluster_index import WorkerEntry
from tests.gateway.rig import Rig

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
async def real_workers(
    rig: Rig, model: Path, *names: str, reached_by: Callable[[str], Awaitable[str]] | None = None, **fields: Any
) -> AsyncIterator[list[Real]]:
    """Workers with a small model.

    Args:
        rig: that they belong to.
        model: its folder.
        names: one for each.
        reached_by: returns the address by which clients reach the one at which a worker has their output; by default it itself.
        fields: of their engine's configuration.
    """
    engine = {"device": "cpu", "gpu_blocks": 64, "host_blocks": 0, **fields}
    config = Config.model_validate({"model": {"path": str(model), "dtype": "float64", "self_test": False}, "engine": engine})
    found = []
    for name in names:
        server = WorkerServer(config, name, SystemClock())
        rig.stack.push_async_callback(server.stop)
        facts = await server.start("127.0.0.1")
        worker = Real(name, server, facts)
        await server.thread.call(lambda engine, logs=worker.logs: _log(engine, logs))  # type: ignore[misc]
        output_address = facts.output_address if reached_by is None else await reached_by(facts.output_address)
        entry = WorkerEntry(
            worker_id=name,
            incarnation="1",
            node_id="node",
            address=facts.address,
            pid=os.getpid(),
            namespace=facts.namespace,
            vocab_size=facts.vocabulary,
            max_context_tokens=facts.max_context,
            gpu_blocks=64,
            host_blocks=0,
            block_bytes=4096,
            output_address=output_address,
        )
        await rig.directory.announce_worker(entry)
        found.append(worker)
    await rig.sees(lambda status: len(status.workers) == len(names), "the gateway knows the workers")
    yield found


def _log(engine: Engine, logs: list[Any]) -> None:
    engine.cache.workflows.on_ended = lambda ended: logs.append((ended.workflow, [copy(step) for step in ended.steps]))
