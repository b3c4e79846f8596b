"""`SchedulerSide` without vLLM: the bases of its messages are empty classes, and requests are as vLLM shows them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

_BASES = {
    "vllm.distributed.kv_transfer.kv_connector.v1.base": (
        "KVConnectorHandshakeMetadata",
        "KVConnectorMetadata",
        "KVConnectorWorkerMetadata",
    ),
    "vllm.distributed.kv_events": ("BlockRemoved", "BlockStored", "KVCacheEvent"),
    "vllm.v1.core.kv_cache_utils": ("generate_block_hash_extra_keys", "maybe_convert_block_hash", "to_event_extra_keys"),
}
BLOCK_TOKENS = 4


@contextmanager
def _modules() -> Iterator[None]:
    made = list[str]()
    for path, names in _BASES.items():
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            if (name := ".".join(parts[:end])) not in sys.modules:
                sys.modules[name] = ModuleType(name)
                made.append(name)
        vars(sys.modules[path]).update({name: type(name, (), {}) for name in names}, MEDIUM_CPU="CPU")
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


with _modules():
    from pbkv_cluster.integrations.vllm.messages import StepPlan, WorkerIntroduction
    from pbkv_cluster.integrations.vllm.scheduler_side import SchedulerSide

__all__ = ["BLOCK_TOKENS", "Blocks", "FakeRequest", "SchedulerSide", "StepPlan", "WorkerIntroduction", "lora_keys", "step"]


@dataclass
class FakeRequest:
    """What of vLLM's `Request` is read."""

    request_id: str
    all_token_ids: list[int]
    num_computed_tokens: int = 0
    lora_request: Any = None
    block_hashes: list[bytes] = field(default_factory=list)
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.all_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


@dataclass
class Blocks:
    """The blocks of vLLM's pool that a request has, which are those of all requests that a step shows."""

    ids: list[int]

    def get_block_ids(self, req_id: str = "") -> tuple[list[int], ...]:
        return (self.ids,)


def step(**tokens: int) -> Any:
    """A step that computes so many tokens of requests, each in blocks from 0 on."""
    return SimpleNamespace(
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        kv_connector_block_state=Blocks(list(range(100))),
    )


def lora_keys(request: Any, start: int, end: int, at: int) -> tuple[tuple[Any, ...] | None, int]:
    """vLLM's extra keys of a request without images and salt."""
    lora = request.lora_request
    return (None if lora is None else (("lora", lora.lora_name, lora.lora_path),)), at
