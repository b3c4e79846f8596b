"""Our policy in vLLM's own `CPUOffloadingManager`: run by the Python of an environment that has vLLM. Silent if all is well."""

import random
from typing import ClassVar

from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ReqContext, make_offload_key
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager
from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory

from pbkv_cluster.integrations.vllm_policy.policy import PbkvCachePolicy

WORKFLOWS, CHUNKS = 12, 18
CAPACITY, REQUESTS, OPEN = 40, 3000, 6


class Watched(PbkvCachePolicy):
    """The policy, within the test's reach."""

    made: ClassVar[list["Watched"]] = []

    def __init__(self, cache_capacity: int) -> None:
        super().__init__(cache_capacity)
        self.made.append(self)


def key(workflow: int, at: int) -> OffloadKey:
    return make_offload_key(f"{workflow}/{at}".encode().ljust(32), 0)


class Request:
    """A request that loads what the tier has of its prompt, and stores the rest in several parts, as in chunked prefill."""

    def __init__(self, manager: CPUOffloadingManager, number: int, draws: random.Random) -> None:
        workflow, turn = draws.randrange(WORKFLOWS), draws.randrange(1, CHUNKS // 3 + 1)
        named = {"pbkv": {"workflow": f"w{workflow}", "final": draws.random() < 0.1}} if workflow % 2 else None
        self.context = ReqContext(f"r{number}", kv_transfer_params=named)
        self.keys = [key(workflow, at) for at in range(3 * turn)]
        for at, each in enumerate(self.keys, 1):
            self.context.set_offload_key_position(each, 16 * at)
        self.manager = manager
        manager.on_new_request(self.context)
        self.loaded = list[OffloadKey]()
        for each in self.keys:
            if manager.lookup(each, self.context) is not LookupResult.HIT:
                break
            self.loaded.append(each)
        if self.loaded:
            manager.prepare_load(self.loaded, self.context)
        self.parts = [self.keys[at : at + 4] for at in range(0, len(self.keys), 4)]
        self.stored = list[list[OffloadKey]]()

    def go_on(self, draws: random.Random) -> bool:
        """Makes the next call. False: it has ended."""
        if self.loaded:
            self.manager.complete_load(self.loaded, self.context)
            self.loaded = []
        elif self.parts:
            taken = self.manager.prepare_store(self.parts.pop(0), self.context)
            if taken is not None and taken.keys_to_store:
                self.stored.append(taken.keys_to_store)
        elif self.stored:
            self.manager.complete_store(self.stored.pop(), self.context, success=draws.random() > 0.1)
        else:
            self.manager.on_request_finished(self.context)
            return False
        return True


def check(policy: Watched) -> None:
    """Each of the tier's chunks has a slot of its own, and the reference cache is sound."""
    chunks = [policy.get(key(workflow, at)) for workflow in range(WORKFLOWS) for at in range(CHUNKS)]
    slots = [chunk.chunk_id for chunk in chunks if chunk is not None]
    assert len(set(slots)) == len(slots) == len(policy.advisor.order) <= CAPACITY
    if policy.advisor.reference is not None:
        policy.advisor.reference.check_integrity()


def main() -> None:
    draws = random.Random(1)
    CachePolicyFactory.register_cache_policy("watched", __name__, "Watched")
    manager = CPUOffloadingManager(CAPACITY, "watched")
    (policy,) = Watched.made
    running, begun = list[Request](), 0
    while begun < REQUESTS or running:
        if begun < REQUESTS and len(running) < OPEN:
            begun += 1
            running.append(Request(manager, begun, draws))
        request = draws.choice(running)
        if not request.go_on(draws):
            running.remove(request)
        if draws.random() < 0.05:
            check(policy)
        if draws.random() < 0.0005:
            manager.reset_cache()
            running.clear()  # the scheduler drops what was in flight
    check(policy)


if __name__ == "__main__":
    main()
