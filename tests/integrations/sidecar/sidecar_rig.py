"""A sidecar over scripted engines, a predictor that keeps what it is told, and OpenAI's own client."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from httpx2 import AsyncClient
from openai import AsyncOpenAI

from pbkv_cluster.core.clock import Clock, SystemClock
from pbkv_cluster.core.config import Config, SidecarConfig
from pbkv_cluster.core.text.codec import TextCodec
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.integrations.sidecar.server import SidecarServer
from pbkv_cluster.rpc.services import PREDICTOR, FixedServices, Services
from tests.gateway.peers import ScriptedPredictor
from tests.gpu_worker.conftest import SMALL
from tests.integrations.sidecar.scripted_engine import ScriptedEngine
from tests.polling import eventually

PATIENCE_S = 20.0


@cache
def tokenizer_path() -> str:
    """A folder with a small model, whose tokenizer the engines and the sidecar share."""
    path = Path(mkdtemp(prefix="sidecar-tokenizer-"))
    build(path, "llama", **SMALL)
    return str(path)


@cache
def codec() -> TextCodec:
    return TextCodec.load(tokenizer_path())


@dataclass(frozen=True)
class SidecarRig:
    """What a test holds."""

    server: SidecarServer
    predictor: ScriptedPredictor
    http: AsyncClient

    @property
    def url(self) -> str:
        return f"http://{self.server.address}"

    def openai(self, **headers: str) -> AsyncOpenAI:
        """The official client, as an application makes it; it does not retry."""
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, default_headers=headers)

    async def chat(
        self, text: str, *, system: str = "You answer.", headers: dict[str, str] | None = None, **fields: Any
    ) -> Any:
        """An answer with its headers, once the sidecar has learnt from it."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        ended = self.ended
        answer = await self.http.post(
            f"{self.url}/v1/chat/completions", json={"model": "m", "messages": messages, **fields}, headers=headers or {}
        )
        if "x-pbkv-step" in answer.headers:
            await eventually(lambda: self.ended > ended)
        return answer

    @property
    def ended(self) -> int:
        """Steps that have ended."""
        proxy = self.server.proxy
        return proxy.steps.meter.totals.steps + proxy.decisions["step_failed"] + proxy.decisions["step_cancelled"]


@asynccontextmanager
async def sidecar(
    *scripted: ScriptedEngine | str,
    engines: Sequence[dict[str, Any]] = (),
    services: Services | None = None,
    clock: Clock | None = None,
    engine: dict[str, Any] | None = None,
    gateway: dict[str, Any] | None = None,
    **fields: Any,
) -> AsyncIterator[SidecarRig]:
    """A sidecar in front of engines, which are started, or of those at URLs.

    Args:
        scripted: engines, or URLs of some.
        engines: others, as the configuration names them.
        services: find another predictor than a scripted one.
        clock: for leases.
        engine: fields of each engine's configuration.
        gateway: fields of `gateway`.
        fields: of `sidecar`.
    """
    async with AsyncExitStack() as stack:
        entries = [*engines]
        for each in scripted:
            url, events = (each, "") if isinstance(each, str) else ("", "")
            if isinstance(each, ScriptedEngine):
                if not each.url:
                    await each.start()
                    stack.push_async_callback(each.stop)
                url, events = each.url, each.kv_events if each.codec is not None else ""
            entries.append({"url": url, "kv_events": events, **(engine or {})})
        predictor = ScriptedPredictor()
        await predictor.start()
        stack.push_async_callback(predictor.server.stop, 0)
        config = Config.model_validate(
            {
                "sidecar": SidecarConfig.model_validate({"engines": entries, "health_interval_s": 0.05, **fields}),
                "gateway": gateway or {},
            }
        )
        server = SidecarServer(config, services or FixedServices({PREDICTOR: predictor.address}), clock or SystemClock())
        stack.push_async_callback(server.stop)
        await server.start("127.0.0.1", 0)
        http = await stack.enter_async_context(AsyncClient(timeout=PATIENCE_S))
        yield SidecarRig(server, predictor, http)
