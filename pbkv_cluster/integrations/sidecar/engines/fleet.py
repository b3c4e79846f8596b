"""All engines behind the sidecar: their KV events are followed, and they are asked whether they are there."""

import asyncio
from collections.abc import Sequence

from pbkv_cluster.core.background import Background
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import SidecarConfig
from pbkv_cluster.core.errors import DeadlineExceeded
from pbkv_cluster.gateway.http.wire.problems import BadGateway
from pbkv_cluster.integrations.sidecar.engines.engine import Engine
from pbkv_cluster.integrations.sidecar.engines.upstream import EngineAway, NoAnswer, Outgoing

HEALTH = Outgoing("GET", b"/health", (), b"")  # vLLM and SGLang answer it with 200, without asking for a key
_MAX_HEALTH_BYTES = 65_536


class Fleet:
    """The engines, from the start to the stop."""

    def __init__(self, settings: SidecarConfig, clock: Clock) -> None:
        self._settings = settings
        self.engines: Sequence[Engine] = [Engine(each, settings, clock) for each in settings.engines]
        self._background = Background()

    def live(self) -> list[Engine]:
        """Those that answer."""
        return [engine for engine in self.engines if engine.is_live]

    async def start(self) -> None:
        """Follows their events, and asks each once whether it is there."""
        for engine in self.engines:
            if engine.events is not None:
                self._background.start(engine.events.run(), f"KV events of {engine.name}")
        await asyncio.gather(*map(self._ask, self.engines))
        for engine in self.engines:
            self._background.start(self._watch(engine), f"health of {engine.name}")

    async def wait(self) -> None:
        """Runs until a part fails, then raises its error."""
        await self._background.failure()

    async def stop(self) -> None:
        await self._background.stop()
        for engine in self.engines:
            await engine.upstream.close()

    async def _watch(self, engine: Engine) -> None:
        while True:
            await asyncio.sleep(self._settings.health_interval_s)
            await self._ask(engine)

    async def _ask(self, engine: Engine) -> None:
        try:
            answer = await engine.upstream.send(HEALTH, self._settings.connect_timeout_s)
            try:
                seen = 0
                async for piece in answer.pieces():
                    seen += len(piece)
                    if seen > _MAX_HEALTH_BYTES:
                        break
            finally:
                await answer.close()
        except (EngineAway, NoAnswer, BadGateway, DeadlineExceeded) as error:
            engine.lost(str(error))
            return
        if answer.status >= 500:
            engine.lost(f"{HEALTH.target.decode()} is answered with {answer.status}")
        else:
            engine.found()
