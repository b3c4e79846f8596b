"""One engine: what it is known to hold, its load and speed, and whether it is there."""

import logging
from pathlib import Path

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.config import SidecarConfig, SidecarEngine
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.gateway.routing.load import WorkerLoad
from pbkv_cluster.gateway.routing.router import CachedTokens
from pbkv_cluster.gateway.routing.speeds import LoadingCost, StepSpeed
from pbkv_cluster.integrations.sidecar.engines.prompts import RoutedPrompt
from pbkv_cluster.integrations.sidecar.engines.text_prefixes import TextPrefixes
from pbkv_cluster.integrations.sidecar.engines.upstream import Upstream
from pbkv_cluster.store.block_map import WorkerKey
from pbkv_cluster.store.kv_events.engine_blocks import EngineBlocks
from pbkv_cluster.store.kv_events.event_subscriber import KvEventSubscriber

log = logging.getLogger(__name__)


class Engine:
    """A server that steps can go to."""

    def __init__(self, config: SidecarEngine, settings: SidecarConfig, clock: Clock) -> None:
        """Args:
        config: of this engine.
        settings: of all.
        clock: for replays.

        Raises:
            StartupError: its file of a key cannot be read.
        """
        self.config = config
        self.name = config.name
        self.upstream = Upstream(config.url, settings.connect_timeout_s, settings.answer_timeout_s, _key(config.key_file))
        self.steps = WorkerLoad()
        self.speed = StepSpeed()
        self.loading = LoadingCost(clock)  # such engines do not tell of theirs
        self.served = 0  # requests that it has answered
        self.texts = TextPrefixes(settings.index_bytes // 4)
        self.blocks = EngineBlocks(settings.index_bytes - settings.index_bytes // 4, self.texts.drop_share)
        self.events: KvEventSubscriber | None = None
        if config.kv_events:
            self.events = KvEventSubscriber(config.kv_events, self.blocks, clock, replay_endpoint=config.kv_replay)
        self._is_there: bool | None = None  # None: it has not been asked yet
        self._lives = 0

    @property
    def key(self) -> WorkerKey:
        """Its name and its life: another life holds nothing of what an earlier one held."""
        restarts = self._lives if self.events is None else self.events.restarts
        return self.name, str(restarts)

    @property
    def memory_tokens(self) -> int:
        """As configured; 0: not known, so that the choice does not go by it."""
        return self.config.memory_tokens

    @property
    def is_live(self) -> bool:
        """Whether it has answered, as far as is known."""
        return bool(self._is_there)

    @property
    def is_exact(self) -> bool:
        """Whether all blocks that it holds are known, and no others."""
        return self.events is not None and self.events.is_exact and self.blocks.is_complete

    def found(self) -> None:
        """It has answered."""
        if self._is_there is False:
            log.info("engine %s is back", self.name)
            if self.events is not None:
                self.events.doubt()
            else:  # it may have restarted, and nothing would tell
                self._lives += 1
                self.texts.clear()
        self._is_there = True

    def lost(self, why: str) -> None:
        """It has not answered."""
        if self._is_there is not False:
            log.warning("engine %s does not answer: %s", self.name, why)
        self._is_there = False

    def cached(self, prompt: RoutedPrompt) -> CachedTokens:
        """How much of a prompt it holds: by its KV events if the prompt's tokens are known, else by the texts it has had."""
        by_text = min(self.texts.match(prompt.keys), prompt.tokens)
        if self.events is None or prompt.packed is None:
            return CachedTokens(by_text, 0)
        held = self.blocks.match(prompt.packed, prompt.first_extra)
        if not self.is_exact and by_text > held.gpu_tokens + held.other_tokens:
            return CachedTokens(by_text, 0)
        return CachedTokens(held.gpu_tokens, held.other_tokens)

    def answered(self, prompt: RoutedPrompt, prompt_tokens: int | None, cached_tokens: int | None) -> None:
        """It has answered a prompt, and has perhaps said of how many tokens that was, and how many it had cached."""
        if prompt_tokens is not None:
            self.texts.measure(len(prompt.keys), prompt_tokens)
        if cached_tokens is not None:
            self.texts.correct(prompt.keys, cached_tokens)
        self.texts.add(prompt.keys)


def _key(file: str) -> str:
    if not file:
        return ""
    try:
        key = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"sidecar.engines.key_file: {file!r} cannot be read: {error}") from None
    if not key.isascii() or not key.isprintable() or not key:
        raise StartupError(f"sidecar.engines.key_file: {file!r} holds no key")
    return key
