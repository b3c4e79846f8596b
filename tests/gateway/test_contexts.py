"""Where the contexts of a workflow's agents lie, and what that makes of the choice of a worker."""

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.blocks import Namespace, block_keys
from pbkv_cluster.core.tokens import BLOCK_TOKENS, pack
from pbkv_cluster.gateway.decisions import Reason
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.load import WorkerLoad
from pbkv_cluster.gateway.routing.router import CachedTokens, Candidate, Costs, KnownContexts, candidates, choose
from pbkv_cluster.gateway.routing.shared_starts import KEY_BYTES, SharedStarts
from pbkv_cluster.gateway.routing.speeds import StepSpeed
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


contexts_of_steps = st.lists(
    st.tuples(st.sampled_from(["u", "v", "w"]), st.sampled_from("ab"), st.sampled_from([ONE, TWO]), paths), max_size=12
)


@given(contexts_of_steps)
def test_own_tokens_are_what_no_start_that_is_shared_has(steps: list[tuple[str, str, WorkerKey, list[int]]]) -> None:
    """Each workflow's contexts differ from the second block on, so that at most the first is shared."""
    contexts = Contexts()
    latest: dict[str, dict[str, tuple[WorkerKey, list[bytes]]]] = {}
    for workflow, agent, at, path in steps:
        path = [0, "uvw".index(workflow) + 3, *path]
        contexts.note(workflow, agent, at, keys(path))
        latest.setdefault(workflow, {})[agent] = (at, keys(path))
    for at in (ONE, TWO):
        lying = {name: set().union(*(k for where, k in of.values() if where == at)) for name, of in latest.items()}
        for name, blocks in lying.items():
            others = sum(len(theirs) for other, theirs in lying.items() if other != name and theirs)
            shared = sum(1 for other, theirs in lying.items() if other != name and theirs)
            found = contexts.others_tokens(name, at) // BLOCK_TOKENS
            assert others - shared <= found <= others
            assert contexts.own_tokens(name) >= (len(blocks) - 1) * BLOCK_TOKENS
    for name in latest:
        contexts.drop(name)
    assert contexts.others_tokens("u", ONE) == contexts.others_tokens("u", TWO) == 0


def test_the_start_that_workflows_share_is_nobodys_own() -> None:
    contexts = Contexts()
    contexts.note("u", "a", ONE, keys([0, 0, 0, 1]))
    assert contexts.own_tokens("u") == 4 * BLOCK_TOKENS, "nobody else is known to have any of it"
    contexts.note("v", "a", ONE, keys([0, 0, 0, 2, 2]))
    assert contexts.own_tokens("v") == 2 * BLOCK_TOKENS
    contexts.note("u", "a", ONE, keys([0, 0, 0, 1, 1, 1]))
    assert contexts.own_tokens("u") == 3 * BLOCK_TOKENS
    contexts.note("v", "b", ONE, keys([0, 0, 0, 2, 2, 2]))
    assert contexts.own_tokens("v") == 3 * BLOCK_TOKENS, "what two agents of one workflow have counts once"
    assert contexts.others_tokens("u", ONE) == 3 * BLOCK_TOKENS
    assert contexts.others_tokens("new", ONE) == 6 * BLOCK_TOKENS
    assert contexts.others_tokens("new", TWO) == 0
    contexts.note("u", "a", TWO, keys([0, 0, 0, 1, 1, 1]))
    assert contexts.others_tokens("new", ONE) == 3 * BLOCK_TOKENS, "it has moved"


def test_a_workflow_that_begins_is_taken_to_become_as_large_as_those_that_ended() -> None:
    contexts = Contexts()
    assert contexts.known("new", {ONE: []}).own == 0
    contexts.note("u", "a", ONE, keys([1] * 5))
    contexts.drop("u")
    contexts.drop("never seen")
    assert contexts.known("new", {ONE: []}) == KnownContexts({}, 5 * BLOCK_TOKENS, False, {ONE: 0})
    contexts.note("new", "b", ONE, keys([2]))
    assert contexts.known("new", {ONE: keys([2])}) == KnownContexts({ONE: 0}, 5 * BLOCK_TOKENS, True, {ONE: 0})


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abc"), paths), max_size=20), st.integers(0, 200))
def test_shared_starts_are_bounded_in_bytes(steps: list[tuple[str, str, list[int]]], capacity: int) -> None:
    starts = SharedStarts(capacity)
    for workflow, agent, path in steps:
        context = b"".join(key[:KEY_BYTES] for key in keys(path))
        assert 0 <= starts.note(workflow, agent, context) <= len(path)
        assert starts.size_bytes <= max(capacity, len(context))


def worker(name: str, gpu: int = 0, queued: int = 0, context: int = 0, duplicates: int = 0) -> Candidate:
    return Candidate(name, gpu, 0, 0, queued, 0.001, False, context, duplicates)


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

    @property
    def key(self) -> WorkerKey:
        return self.name, ""


FULL, ROOMY = Named("full"), Named("roomy")


def chosen(
    contexts: KnownContexts, cached: tuple[int, int] = (0, 0), memory: int = 100, prompt: int = 10
) -> tuple[str, Reason]:
    """Of two workers with so many blocks of a prompt cached."""
    workers = [replace(each, memory_tokens=memory * BLOCK_TOKENS) for each in (FULL, ROOMY)]
    prompt_keys = keys([number % 3 for number in range(prompt)])
    held = [CachedTokens(blocks * BLOCK_TOKENS, 0) for blocks in cached]
    return choose(candidates(workers, held, [prompt_keys] * 2, contexts, None), COSTS)


def test_a_workflow_begins_where_most_memory_is_left() -> None:
    other = {FULL.key: 60 * BLOCK_TOKENS, ROOMY.key: 40 * BLOCK_TOKENS}
    begins = KnownContexts(own=20 * BLOCK_TOKENS, others=other)
    assert chosen(begins) == ("roomy", Reason.ROUTE_LEAST_LOADED)
    assert chosen(begins, cached=(8, 0)) == ("roomy", Reason.ROUTE_PRESSURE), "for all of its steps"
    assert chosen(begins._replace(own=0)) == ("roomy", Reason.ROUTE_LEAST_LOADED), "its prompt takes room, too"
    assert chosen(begins, cached=(8, 0), memory=1000)[0] == "full", "there is room on both"
    assert chosen(begins, cached=(8, 0), memory=0)[0] == "full", "nobody knows how much there is"


def test_a_workflow_moves_from_a_full_worker_only_if_it_leaves_little_behind() -> None:
    other = {FULL.key: 150 * BLOCK_TOKENS, ROOMY.key: 50 * BLOCK_TOKENS}
    under_way = KnownContexts({FULL.key: 20 * BLOCK_TOKENS}, 30 * BLOCK_TOKENS, True, other)
    assert chosen(under_way, cached=(10, 0))[0] == "full", "10 blocks at once, 10 of its next steps, against 15 of others"
    assert chosen(under_way, cached=(10, 9)) == ("roomy", Reason.ROUTE_PRESSURE)
    alone = under_way._replace(others={FULL.key: 0, ROOMY.key: 0})
    assert chosen(alone, cached=(10, 9))[0] == "full", "its own tokens push out nobody's"
