"""What vLLM's `CPUOffloadingManager` and `ReqContext` do with a policy, without vLLM. `in_vllm.py` has the real ones."""

from types import SimpleNamespace
from typing import Any, TypeVar

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.config.engines import VllmConfig
from pbkv_cluster.integrations.vllm_policy.advisor import Advisor
from pbkv_cluster.integrations.vllm_policy.learning import LocalLearner
from pbkv_cluster.predictor_service.access.prior import load_prior

StateT = TypeVar("StateT")


def key_of(name: str, group: int = 0) -> bytes:
    """The key of a chunk; a name stands for all tokens up to its end."""
    return name.encode().ljust(32, b".") + group.to_bytes(4, "big")


class Context:
    """A request's context."""

    def __init__(self, params: dict[str, Any] | None = None, hints: Any = None) -> None:
        self.req_id = "request"
        self.kv_transfer_params = params
        self.kv_hints = hints
        self._offload_key_positions: dict[Any, int] = {}
        self._state: dict[type, Any] = {}

    def get_state(self, cls: type[StateT], /) -> StateT | None:
        return self._state.get(cls)

    def set_state(self, val: Any, /) -> None:
        self._state[type(val)] = val

    def place(self, keys: list[bytes]) -> None:
        """The scheduler tells where each chunk of a group ends."""
        self._offload_key_positions.update({key: 16 * at for at, key in enumerate(keys, 1)})


class Tier:
    """A CPU tier whose transfers are done at once."""

    def __init__(self, capacity: int, **settings: Any) -> None:
        self.clock = ManualClock()
        self.knowledge = LocalLearner(load_prior("default"))
        config = Config(vllm=VllmConfig(**settings))
        self.advisor: Advisor[SimpleNamespace] = Advisor(capacity, config, self.clock, self.knowledge)
        self.capacity = capacity

    def request(self, names: list[str], params: dict[str, Any] | None = None, hints: Any = None) -> int:
        """A request whose prompt has these chunks takes a second. Returns the chunks that it hits."""
        order, prompt = self.advisor.order, [key_of(name) for name in names]
        context = Context(params, hints)
        context.place(prompt)
        hits = next((at for at, key in enumerate(prompt) if order.get(key) is None), len(prompt))
        missing = [key for key in prompt if order.get(key) is None]
        if missing:
            self.advisor.storing(missing, context)
            surplus = len(order) + len(missing) - self.capacity
            if surplus <= 0 or order.evict(surplus, set(prompt)) is not None:
                for key in missing:
                    order.add(key, SimpleNamespace(ref_cnt=0))
        assert len(order) <= self.capacity
        self.clock.advance(1.0)
        order.use(prompt)
        self.advisor.finished(prompt, context)
        return hits

    def holds(self, name: str) -> bool:
        return self.advisor.order.get(key_of(name)) is not None
