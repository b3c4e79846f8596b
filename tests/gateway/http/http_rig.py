"""A gateway with its HTTP server, over scripted workers, and the official clients of the APIs that it serves."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.gateway.http.server import HttpServer
from tests.gateway.peers import ScriptedPredictor, ScriptedWorker
from tests.gateway.rig import Rig, running, until

MODEL = "scripted"
CONTEXT = 16_384
KEY = "none"


@dataclass(frozen=True)
class HttpRig:
    """What a test holds."""

    rig: Rig
    server: HttpServer
    predictor: ScriptedPredictor

    @property
    def url(self) -> str:
        return f"http://{self.server.address}"

    def openai(self, **headers: str) -> AsyncOpenAI:
        """The official client, as an application makes it; it does not retry."""
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, default_headers=headers)

    def anthropic(self, **headers: str) -> AsyncAnthropic:
        return AsyncAnthropic(base_url=self.url, api_key=KEY, max_retries=0, default_headers=headers)

    async def workflow(self) -> str:
        """The one workflow that the predictor is told of, once it has been told of one."""
        await until(lambda: bool(self.predictor.events), "the predictor is told of a workflow")
        (workflow,) = {event.workflow for event in self.predictor.events}
        return workflow

    async def events(self, workflow: str, *kinds: EventKind, least: int = 1) -> list[WorkflowEvent]:
        """The workflow's events of these kinds, once there are that many."""

        def found() -> list[WorkflowEvent]:
            return [event for event in self.predictor.of(workflow) if event.kind in kinds]

        await until(lambda: len(found()) >= least, f"{least} events of {workflow}, so far {self.predictor.of(workflow)}")
        return found()


@asynccontextmanager
async def http_running(
    *workers: ScriptedWorker, model: Mapping[str, Any] | None = None, **gateway: Any
) -> AsyncIterator[HttpRig]:
    """A gateway over the workers; further arguments are fields of its configuration."""
    for worker in workers:
        worker.context = CONTEXT
    async with running(*workers, **{"http_model": MODEL, **gateway}) as rig:
        config = rig.config.model_copy(update={"model": rig.config.model.model_copy(update=dict(model or {}))})
        server = HttpServer(config, rig.gateway)
        await server.start("127.0.0.1", 0)
        try:
            yield HttpRig(rig, server, await rig.add_predictor())
        finally:
            await server.stop()
