"""A cluster with its dashboard in this process: the real members on threads, real Redis, gRPC and HTTP, but no Ray."""

import random
import uuid
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pbkv_cluster.client import Client
from pbkv_cluster.cluster.frame.member_thread import MemberThread
from pbkv_cluster.cluster.membership.head import Head
from pbkv_cluster.cluster.membership.member import MakeMember, MemberContext
from pbkv_cluster.cluster.membership.member_board import MemberBoard
from pbkv_cluster.cluster.membership.members import GatewayMember, HostStoreMember, PredictorMember, WorkerMember
from pbkv_cluster.cluster.startup.acquaintance import await_acquaintance
from pbkv_cluster.core.config import load
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.dashboard.member import Dashboard
from pbkv_cluster.gpu_worker.model.random_model import build
from pbkv_cluster.store.cluster_index import MemberEntry, RedisServer
from pbkv_cluster.store.cluster_index.redis_server import free_port

_START_S = 120.0
_STOP_S = 20.0
_LOOPBACK = "127.0.0.1"


class SmallCluster:
    """Gateway, predictor, host store and one worker with a small random model."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """Args:
        folder: for the model.
        settings: by path with `__` for dots; see `core.config`.
        """
        build(
            folder,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=8192,
        )
        flags = {
            "cluster.name": f"test-{uuid.uuid4().hex[:8]}",
            "model.path": str(folder),
            "engine.gpu_blocks": 200,
            "engine.host_blocks": 200,
            "gateway.port": free_port(_LOOPBACK),
            "redis.lease_s": 3.0,
            "dashboard.port": free_port(_LOOPBACK),
            **{name.replace("__", "."): value for name, value in settings.items()},
        }
        self.config = load(flags=flags).config
        self.members: dict[str, MemberThread] = {}
        self.gateway_address = ""
        self.url = f"http://{_LOOPBACK}:{self.config.dashboard.port}/"
        self._stack = ExitStack()
        self._states = {name: MemberEntry(name, True, 0, "") for name in ("gateway", "predictor", "host-store-0", "worker-0")}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def start(self, name: str) -> str:
        """Starts one part: a member, `head` or `dashboard`. Returns its address."""
        makers: dict[str, MakeMember] = {
            "gateway": GatewayMember,
            "predictor": PredictorMember,
            "host-store-0": HostStoreMember,
            "worker-0": lambda context: WorkerMember(context, "worker-0"),
            "head": lambda context: Head(context, lambda: list(self._states.values()), lambda: 0),
            "dashboard": Dashboard,
        }
        context = MemberContext(self.config, self._redis.url, _LOOPBACK, "node-0", name)
        failures: list[BaseException] = []
        thread = self.members[name] = MemberThread(lambda: makers[name](context), failures.append)
        return thread.started.result(_START_S)

    def stop(self, name: str) -> None:
        """Stops one part."""
        self.members.pop(name).stop(_STOP_S)

    def announce(self, name: str, up: bool, restarts: int, last_failure: str) -> None:
        """Tells the directory of the state of a member, as a supervisor does."""
        self._states[name] = MemberEntry(name, up, restarts, last_failure)
        self._board.show(list(self._states.values()))

    def _stop_members(self) -> None:
        for name in reversed(list(self.members)):
            self.stop(name)

    def _start(self) -> None:
        self._redis = RedisServer.resolve("", host=_LOOPBACK)
        self._stack.callback(self._redis.stop)
        self._board = MemberBoard(self._redis.url, self.config.cluster.name, self.config.redis.lease_s)
        self._board.start()
        self._stack.callback(self._board.stop)
        self._board.show(list(self._states.values()))
        self._stack.callback(self._stop_members)
        for name in ("predictor", "gateway", "host-store-0", "worker-0", "head", "dashboard"):
            address = self.start(name)
            if name == "gateway":
                self.gateway_address = address
        await_acquaintance(self.gateway_address, 1, _START_S)


def tokens(length: int, seed: int) -> list[int]:
    """A prompt that has nothing in common with one of another seed."""
    generator = random.Random(seed)
    return [generator.randrange(5, 4000) for _ in range(length)]


def run_workflows(address: str, workflows: int, seed: int = 0, workload: str = "review") -> list[Usage]:
    """Workflows of three agents that share a prompt, one after the other. Returns their usage records."""
    usage = []
    with Client(address) as client:
        for number in range(workflows):
            with client.start_workflow(workload=workload) as workflow:
                context = tokens(96, seed)
                for step, agent in enumerate(("planner", "coder", "reviewer")):
                    context += tokens(24, 1 + seed + 10 * number + step)
                    result = workflow.run(agent=agent, prompt=context, max_tokens=4, ignore_eos=True)
                    usage.append(result.usage)
                    context += result.token_ids
    return usage
