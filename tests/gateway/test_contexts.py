"""Where the contexts of a workflow's agents lie, and what that makes of the choice of a worker."""

import tracemalloc
from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.gateway.decisions import Reason
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.load import WorkerLoad
from pbkv_cluster.gateway.routing.router import CachedTokens, Candidate, Costs, KnownContexts, candidates, choose
from pbkv_cluster.gateway.routing.shared_starts import KEY_BYTES, SharedStarts
from pbkv_cluster.gateway.routing.speeds import LoadingCost, StepSpeed
from pbkv_cluster.store.block_map import WorkerKey

SPACE = Namespace("m", "r", "f", "l")
ONE, TWO = ("one", "1"), ("one", "2")  # incarnations of one worker
COSTS = Costs(seconds_per_token=1e-3, parallelism=8)

paths = st.lists(st.integers(0, 2), max_size=5)


def keys(path: list[int]) -> list[bytes]:
    return block_keys(SPACE, pack([symbol for symbol in path for _ in range(BLOCK_TOKENS)]))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([ONE, TWO]), paths), max_size=8), paths)
def test_blocks_of_the_latest_contexts_count_once_where_they_lie(
    steps: list[tuple[str, WorkerKey, list[int]]], prompt: list[int]
) -> None:
    contexts = Contexts()
    for agent, worker, path in steps:
        contexts.note("w", agent, worker, keys(path))
        contexts.note("other", agent, worker, keys([9, *path]))
    latest = {agent: (worker, set(keys(path))) for agent, worker, path in steps}
    found = contexts.tokens("w", dict.fromkeys((ONE, TWO), keys(prompt)))
    for name in (ONE, TWO):
        lying = set().union(*(blocks for worker, blocks in latest.values() if worker == name))
        assert found.get(name, 0) == len(lying - set(keys(prompt))) * BLOCK_TOKENS
    contexts.drop("w")
    contexts.drop("other")
    assert contexts.size_bytes == 0
    assert contexts.tokens("w", {ONE: keys(prompt)}) == {}


def test_contexts_are_bounded_in_bytes_and_agents() -> None:
    contexts = Contexts(capacity_bytes=8 * 20)
    for number in range(30):
        contexts.note(f"w{number % 5}", "a", ONE, keys([0] * 5))
    assert contexts.size_bytes == 8 * 20
    assert [bool(contexts.tokens(f"w{number}", {ONE: []})) for number in range(5)] == [False, True, True, True, True]
    for number in range(40):
        contexts.note("many", f"agent-{number}", ONE, keys([number]))
    assert contexts.tokens("many", {ONE: []}) == {ONE: 16 * BLOCK_TOKENS}


def test_a_context_is_compared_with_the_prompts_keys_where_it_lies() -> None:
    """Engines have other keys for equal tokens; a worker that no step can go to does not matter."""
    other = block_keys(replace(SPACE, layout="other"), pack([0] * 2 * BLOCK_TOKENS))
    there, gone = ("there", "1"), ("gone", "1")
    contexts = Contexts()
    contexts.note("w", "a", ONE, keys([0, 0]))
    contexts.note("w", "b", there, other)
    contexts.note("w", "c", gone, keys([5]))
    assert contexts.tokens("w", {ONE: keys([0]), there: other[:1]}) == {ONE: BLOCK_TOKENS, there: BLOCK_TOKENS}


def others(contexts: Contexts, workflow: str, at: WorkerKey = ONE) -> int:
    """Blocks of other workflows at a worker."""
    return contexts.known(workflow, "none", {at: []}).others[at] // BLOCK_TOKENS


def own(contexts: Contexts, workflow: str, agent: str = "none") -> int:
    """Blocks of its own that a workflow has, or will have."""
    return contexts.known(workflow, agent, {ONE: [], TWO: []}).own // BLOCK_TOKENS


contexts_of_steps = st.lists(
    st.tuples(st.sampled_from(["u", "v", "w"]), st.sampled_from("ab"), st.sampled_from([ONE, TWO]), paths), max_size=12
)


@given(contexts_of_steps, st.booleans())
def test_own_blocks_are_those_beside_the_start_that_is_shared(
    steps: list[tuple[str, str, WorkerKey, list[int]]], asked_between: bool
) -> None:
    """Each workflow's contexts differ from the second block on, so that at most the first is shared."""
    contexts = Contexts()
    latest: dict[str, dict[str, tuple[WorkerKey, list[bytes]]]] = {}
    for workflow, agent, at, path in steps:
        path = [0, "uvw".index(workflow) + 3, *path]
        contexts.note(workflow, agent, at, keys(path))
        latest.setdefault(workflow, {})[agent] = (at, keys(path))
        if asked_between:
            others(contexts, workflow)
    for at in (ONE, TWO):
        lying = {name: set().union(*(k for where, k in of.values() if where == at)) for name, of in latest.items()}
        for name in lying:
            theirs = [len(blocks) for other, blocks in lying.items() if other != name and blocks]
            assert sum(theirs) - len(theirs) <= others(contexts, name, at) <= sum(theirs)
    for number, name in enumerate(latest):
        (contexts.end if number % 2 else contexts.drop)(name)
        if asked_between:
            contexts.drop(name)
    assert others(contexts, "x", ONE) == others(contexts, "x", TWO) == 0
    assert contexts.size_bytes == 0


def test_the_start_that_workflows_share_is_nobodys_own() -> None:
    contexts = Contexts()
    contexts.note("u", "a", ONE, keys([0, 0, 0, 1]))
    assert own(contexts, "u") == 4, "nobody else is known to have any of it"
    contexts.note("v", "a", ONE, keys([0, 0, 0, 2, 2]))
    assert own(contexts, "v") == 2
    contexts.note("u", "a", ONE, keys([0, 0, 0, 1, 1, 1]))
    assert own(contexts, "u") == 3
    contexts.note("v", "b", ONE, keys([0, 0, 0, 2, 2, 2]))
    assert own(contexts, "v") == 3, "what two agents of one workflow have counts once"
    assert others(contexts, "u") == 3
    assert others(contexts, "new") == 6
    assert others(contexts, "new", TWO) == 0
    contexts.note("u", "a", TWO, keys([0, 0, 0, 1, 1, 1]))
    assert others(contexts, "new") == 3, "it has moved"
    contexts.note("w", "made up for w", ONE, keys([0, 0, 0, 1]))
    assert own(contexts, "w") <= 1, "names of agents need not come again"


def test_a_workflow_is_expected_to_become_as_large_as_those_that_began_with_the_same_agent() -> None:
    contexts = Contexts()
    assert own(contexts, "new", "a") == 0
    contexts.note("u", "a", ONE, keys([1] * 5))
    contexts.note("u", "b", ONE, keys([2] * 3))
    contexts.end("u")
    contexts.note("gone on elsewhere", "a", ONE, keys([0]))
    contexts.drop("gone on elsewhere")
    contexts.end("never seen")
    assert (own(contexts, "new", "a"), own(contexts, "new", "b")) == (8, 0)
    contexts.note("new", "a", ONE, keys([0, 1]))
    assert own(contexts, "new", "a") <= 2, "what it has is known"
    assert others(contexts, "another") == 8, "but it is going to grow"
    contexts.note("new", "b", TWO, keys([0, 2, 2]))
    assert others(contexts, "another") + others(contexts, "another", TWO) == 8
    assert others(contexts, "another", TWO) >= 6, "where it ran last"
    assert contexts.known("", "a", {ONE: []}) == KnownContexts()


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abc"), paths), max_size=20), st.integers(0, 2000))
def test_shared_starts_are_bounded(steps: list[tuple[str, str, list[int]]], capacity: int) -> None:
    starts = SharedStarts(capacity)
    for workflow, agent, path in steps:
        context = b"".join(key[:KEY_BYTES] for key in keys(path))
        assert 0 <= starts.note(workflow, agent, context) <= len(path)
        assert starts.size_bytes <= max(capacity, len(context) + 400)


def test_agents_without_end_take_no_memory_without_end() -> None:
    capacity = 200_000
    starts = SharedStarts(capacity)
    tracemalloc.start()
    try:
        for number in range(10_000):
            assert starts.note(f"w{number}", f"agent-{number}", b"") == 0
            starts.note(f"w{number}", f"agent-{number}", b"12345678")
        assert tracemalloc.get_traced_memory()[0] < 2 * capacity
    finally:
        tracemalloc.stop()


def test_a_placement_is_not_held_up_by_all_that_is_open() -> None:
    """As when a second worker comes: until then nothing has been counted."""
    contexts = Contexts()
    for number in range(200):
        contexts.note(f"w{number}", "a", ONE, keys([number]))
    counted = [others(contexts, "new") for _ in range(5)]
    assert 0 < counted[0] < counted[1] < counted[-1] == counted[-2] == 200
    contexts.note("late", "a", ONE, keys([201, 201]))
    assert own(contexts, "late") == 2


def worker(name: str, gpu: int = 0, queued: int = 0, context: int = 0, duplicates: int = 0) -> Candidate:
    return Candidate(name, CachedTokens(gpu), 0, queued, 0.001, False, context, duplicates)


def test_a_workflow_stays_with_its_contexts_unless_moving_saves_more() -> None:
    home = worker("home", gpu=160, context=640, duplicates=160)
    assert choose([home, worker("shared", gpu=320)], COSTS) == ("home", Reason.ROUTE_CONTEXT)
    assert choose([home, worker("shared", gpu=960)], COSTS).worker_id == "shared", "that much prefill"
    assert choose([home._replace(queued_tokens=4000), worker("idle")], COSTS) == ("idle", Reason.ROUTE_QUEUE)
    assert choose([home._replace(queued_tokens=1000), worker("idle")], COSTS).worker_id == "home", "a short queue is worth it"


def test_a_second_copy_costs_the_room_of_what_it_evicts() -> None:
    holder = worker("holder", gpu=800, queued=7000)
    assert choose([holder, worker("idle", duplicates=0)], COSTS).worker_id == "idle"
    assert choose([holder, worker("idle", duplicates=800)], COSTS).worker_id == "holder"


@dataclass
class Named:
    """A worker without steps, with memory for 100 blocks."""

    name: str
    memory_tokens: int = 100 * BLOCK_TOKENS
    steps: WorkerLoad = field(default_factory=WorkerLoad)
    speed: StepSpeed = field(default_factory=StepSpeed)
    loading: LoadingCost = field(default_factory=lambda: LoadingCost(ManualClock()))

    @property
    def key(self) -> WorkerKey:
        return self.name, ""


FULL, ROOMY = Named("full"), Named("roomy")


def chosen(
    contexts: KnownContexts,
    cached: tuple[int, int] = (0, 0),
    memory: tuple[int, int] = (100, 100),
    last: WorkerKey | None = None,
) -> tuple[str, Reason]:
    """Of two workers with so many blocks of memory, and so many of a prompt of ten cached."""
    workers = [replace(each, memory_tokens=blocks * BLOCK_TOKENS) for each, blocks in zip((FULL, ROOMY), memory, strict=True)]
    held = [CachedTokens(blocks * BLOCK_TOKENS, 0) for blocks in cached]
    return choose(candidates(workers, held, [keys([number % 3 for number in range(10)])] * 2, contexts, last), COSTS)


def test_a_workflow_begins_where_most_memory_is_left() -> None:
    other = {FULL.key: 60 * BLOCK_TOKENS, ROOMY.key: 40 * BLOCK_TOKENS}
    begins = KnownContexts(own=20 * BLOCK_TOKENS, others=other)
    assert chosen(begins) == ("roomy", Reason.ROUTE_LEAST_LOADED)
    assert chosen(begins, cached=(8, 0)) == ("roomy", Reason.ROUTE_PRESSURE), "for all of its steps"
    assert chosen(begins._replace(own=0)) == ("roomy", Reason.ROUTE_LEAST_LOADED), "its prompt takes room, too"
    assert chosen(begins, cached=(8, 0), memory=(1000, 1000))[0] == "full", "there is room on both"
    assert chosen(begins, cached=(8, 0), memory=(100, 0))[0] == "full", "nobody knows how much there is on one"
    assert chosen(begins, cached=(8, 0), memory=(20, 20))[0] == "full", "no memory is more than full"


def test_a_workflow_moves_from_a_full_worker_only_if_it_leaves_little_behind() -> None:
    other = {FULL.key: 100 * BLOCK_TOKENS, ROOMY.key: 0}
    under_way = KnownContexts({FULL.key: 20 * BLOCK_TOKENS}, 30 * BLOCK_TOKENS, other)
    last = FULL.key
    assert chosen(under_way, cached=(10, 0), last=last)[0] == "full", "10 blocks at once, 10 of its next steps, against 15"
    assert chosen(under_way, cached=(10, 9), last=last) == ("roomy", Reason.ROUTE_PRESSURE)
    alone = under_way._replace(others={FULL.key: 0, ROOMY.key: 0})
    assert chosen(alone, cached=(10, 9), last=last)[0] == "full", "its own tokens push out nobody's"
    everywhere = under_way._replace(others={FULL.key: 900 * BLOCK_TOKENS, ROOMY.key: 0})
    assert chosen(everywhere, cached=(10, 0), last=last)[0] == "full", "what has been evicted pushes nobody out"


def test_a_burst_of_workflows_spreads() -> None:
    """They begin small, but will be as large as an earlier one: 40 of 20 blocks, on two workers with room for 1,000 blocks."""
    contexts = Contexts()
    contexts.note("earlier", "a", FULL.key, keys([1] * 20))
    contexts.end("earlier")
    workers = [replace(each, memory_tokens=1000 * BLOCK_TOKENS) for each in (FULL, ROOMY)]
    placed = Counter[str]({"full": 10})
    for number in range(10):
        contexts.note(f"old-{number}", "a", FULL.key, keys([2, number] + [2] * 18))
    for number in range(40):
        prompt = keys([3, number])
        known = contexts.known(f"w{number}", "a", dict.fromkeys((FULL.key, ROOMY.key), prompt))
        name = choose(candidates(workers, [CachedTokens(0, 0)] * 2, [prompt] * 2, known, None), COSTS).worker_id
        placed[name] += 1
        contexts.note(f"w{number}", "a", (name, ""), prompt)
    assert abs(placed["full"] - placed["roomy"]) <= 2
