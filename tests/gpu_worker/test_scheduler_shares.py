"""What the real scheduler serves tenants: as its queue, but with what it charges, and when, for prompts and outputs."""

from collections.abc import Sequence as List

from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.cache.cache import KVCache
from pbkv_cluster.cache.tiers.transfer import NullTransferEngine, Transfer
from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig, EngineConfig
from pbkv_cluster.core.sampling import SamplingParams
from pbkv_cluster.core.tokens import pack
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.gpu_worker.engine.scheduler import Scheduler
from pbkv_cluster.gpu_worker.engine.sequence import Sequence, StepRequest
from pbkv_cluster.gpu_worker.engine.text_stream import TextStream

SPACE = Namespace("model", "revision", "float32", "layout")


class FailingLoads(NullTransferEngine):
    """Nothing arrives from the host."""

    def __init__(self) -> None:
        self._failed: list[Transfer] = []

    def submit(self, transfer: Transfer) -> bool:
        if transfer.target is not Tier.GPU:
            return True
        transfer.failed = transfer.target_slots
        self._failed.append(transfer)
        return False

    def completed(self) -> List[Transfer]:
        failed, self._failed = self._failed, []
        return failed


class Worker:
    """Runs admitted steps by hand. No two steps have a block in common."""

    def __init__(self, max_running: int = 1, gpu_blocks: int = 10_000, weights: str = "", host_blocks: int = 0) -> None:
        clock = ManualClock()
        capacity = {Tier.GPU: gpu_blocks, Tier.HOST: host_blocks}
        self.cache = KVCache(capacity, CacheConfig(policy="lru"), FailingLoads(), clock)
        config = EngineConfig(max_running=max_running, tenant_weights=weights)
        self.scheduler = Scheduler(self.cache, config, clock, lambda tokens: 0.0, lambda tokens: 0.0)
        self._steps = 0

    def submit(self, tenant: str, tokens: int, prefix: int = 0) -> Sequence:
        """A step; its prompt begins with so many tokens that are the same in all steps."""
        self._steps += 1
        space, prompt = SPACE.of_tenant(tenant, tokens), pack([0] * prefix + [self._steps] * (tokens - prefix))
        step = StepRequest(str(self._steps), tenant, "agent", self._steps, space, prompt, SamplingParams(max_tokens=1000))
        sequence = Sequence(step, self._steps, 0.0, TextStream(lambda ids: "", ()), Usage(prompt_tokens=tokens))
        self.scheduler.add(sequence)
        return sequence

    def admit(self) -> Sequence | None:
        """The next step, if there is room for one."""
        return next(self.scheduler.admissions(), None)

    def generate(self, sequence: Sequence, tokens: int) -> None:
        for _ in range(tokens):
            sequence.append(7)
            self.scheduler.charge_output(sequence)

    def turns(self, of: str, others: str, tokens: int) -> int:
        """Steps of the others that run before one of a tenant; each has so many tokens."""
        for turn in range(10_000):
            step = self.admit()
            assert step is not None
            self.scheduler.remove(step)
            if step.tenant == of:
                return turn
            self.submit(others, tokens)
        raise AssertionError("it has not been served")


def test_who_comes_after_a_long_step_that_others_waited_beside_does_not_pay_for_it() -> None:
    worker = Worker()
    for _ in range(3):  # so that it waits all the time
        worker.submit("b", 100)
    long = worker.submit("a", 100_000)
    first = worker.admit()
    assert first is not None
    worker.scheduler.remove(first)
    assert worker.admit() is long
    worker.scheduler.remove(long)
    worker.submit("c", 100)
    assert worker.turns("c", "b", 100) <= 2


def test_output_counts_before_its_tenant_waits_again() -> None:
    """What a tenant has had while it asked for nothing else makes it start no later than others that were as far."""
    worker = Worker(max_running=2)
    first = worker.submit("a", 10)
    assert worker.admit() is first
    ahead = worker.submit("b", 2000)
    assert worker.admit() is ahead
    worker.scheduler.remove(ahead)
    worker.submit("b", 10)
    assert worker.admit() is not None
    worker.generate(first, 1500)
    worker.submit("b", 10)
    worker.submit("a", 10)
    worker.scheduler.remove(first)
    step = worker.admit()
    assert step is not None
    assert step.tenant == "a"


def test_a_step_whose_load_has_failed_is_charged_what_it_computes_and_no_more() -> None:
    worker = Worker(gpu_blocks=200, host_blocks=200)
    worker.submit("a", 161, prefix=160)
    for chunk in worker.scheduler.schedule():
        worker.scheduler.computed(chunk)
        worker.scheduler.remove(chunk.sequence)
    taken = worker.cache.tiers.take(200)  # all that is cached goes to the host
    assert taken is not None
    worker.cache.tiers.give(taken)
    failing = worker.submit("a", 1000, prefix=160)
    assert worker.admit() is failing
    assert failing.computed == 160
    worker.submit("a", 100)
    worker.submit("b", 100)
    worker.cache.poll()
    while worker.scheduler.schedule()[0].sequence is not failing:
        (step,) = worker.scheduler.running
        worker.scheduler.remove(step)
        worker.submit("b", 100)
    assert failing.computed == 0
    worker.scheduler.remove(failing)
    assert worker.turns("a", "b", 100) <= 3


STEPS = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 40)), min_size=1, max_size=12)
WEIGHT = st.sampled_from([0.5, 1.0, 3.0])


@settings(max_examples=50)
@given(STEPS, STEPS, STEPS, st.tuples(WEIGHT, WEIGHT, WEIGHT), st.integers(0, 12))
def test_of_those_that_wait_nobody_gets_ahead_by_more_than_a_step_of_each(
    a: List[tuple[int, int]],
    b: List[tuple[int, int]],
    c: List[tuple[int, int]],
    weights: tuple[float, float, float],
    before: int,
) -> None:
    """From the moment at which the third begins to wait, whatever the others were served before and at that moment."""
    worker = Worker(weights=",".join(f"{name}={weight}" for name, weight in zip("abc", weights, strict=True)))
    weight = dict(zip("abc", weights, strict=True))
    costs = {"a": a, "b": b, "c": c}
    most = {name: max(map(sum, each)) / weight[name] for name, each in costs.items()}
    submitted = dict.fromkeys("abc", 0)
    outputs: dict[Sequence, int] = {}

    def submit(name: str) -> None:
        tokens, output = costs[name][submitted[name] % len(costs[name])]
        submitted[name] += 1
        outputs[worker.submit(name, tokens)] = output

    served = dict.fromkeys("abc", 0.0)
    begun = {"a": 0.0, "b": 0.0}
    for name in "aabb":
        submit(name)
    for turn in range(before + 20):
        step = worker.admit()
        assert step is not None
        served[step.tenant] += step.total / weight[step.tenant]
        if turn == before:  # while a step runs that has been charged
            submit("c")
            submit("c")
            begun = dict(served)
        worker.generate(step, outputs[step])
        served[step.tenant] += outputs[step] / weight[step.tenant]
        worker.scheduler.remove(step)
        submit(step.tenant)
        if turn > before:
            gained = {name: served[name] - begun[name] for name in "abc"}
            for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
                assert abs(gained[one] - gained[other]) <= most[one] + most[other] + 1e-9
