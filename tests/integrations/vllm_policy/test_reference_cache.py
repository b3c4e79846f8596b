"""The cache that decides which chunks of vLLM's tier are worth keeping."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import CacheConfig
from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.integrations.vllm_policy.reference_cache import ReferenceCache, RunningRequest


class Rig:
    """A reference cache, and what it has told."""

    def __init__(self, capacity: int, max_workflows: int = 100) -> None:
        self.clock = ManualClock()
        self.kept: set[bytes] = set()
        self.ended: list[AccessLog] = []
        self.cache = ReferenceCache(
            capacity, CacheConfig(), self.clock, self.kept.remove, self.kept.add, 900.0, max_workflows, self.ended.append
        )

    def run(self, workflow: str, chunks: list[bytes]) -> None:
        running = self.cache.begin(workflow, "agent", "", chunks)
        assert running is not None
        self.cache.advance(running, len(chunks))
        self.clock.advance(1.0)
        self.cache.finish(running)


def _path(tail: str) -> list[bytes]:
    """Chunks whose hashes stand for all before them."""
    return [tail[:end].encode().ljust(8, b".") for end in range(1, len(tail) + 1)]


requests = st.lists(
    st.tuples(st.sampled_from("xyz"), st.text("ab", min_size=1, max_size=7), st.integers(0, 4), st.booleans()), max_size=25
)


@settings(deadline=None, max_examples=60)
@given(requests)
def test_what_it_keeps_fits_the_tier_and_includes_what_runs(history: list[tuple[str, str, int, bool]]) -> None:
    rig, running = Rig(12), list[RunningRequest]()
    for workflow, tail, stored, ends in history:
        rig.clock.advance(1.0)
        request = rig.cache.begin(workflow, "agent", "", _path(tail))
        if request is not None:
            rig.cache.advance(request, min(stored, len(tail)))
            request.extend(_path(tail + "ab"))
            running.append(request)
        if ends and running:
            rig.cache.finish(running.pop(0))
        if workflow == "z" and ends:
            rig.cache.retire(workflow)
        rig.cache.check_integrity()
        assert len(rig.kept) <= 12
    for request in running:
        rig.cache.finish(request)
    rig.cache.check_integrity()


def test_a_prompt_that_is_larger_than_the_tier_is_left_alone() -> None:
    rig = Rig(4)
    assert rig.cache.begin("x", "agent", "", _path("abababab")) is None
    rig.run("x", _path("ab"))
    assert rig.kept == set(_path("ab"))


def test_requests_that_began_first_make_room_for_others() -> None:
    rig = Rig(8)
    first = rig.cache.begin("x", "agent", "", _path("aaaaa"))
    assert first is not None
    rig.cache.advance(first, 5)
    second = rig.cache.begin("y", "agent", "", _path("bbbbb"))
    assert second is not None
    rig.cache.advance(second, 5)
    assert rig.kept >= set(_path("bbbbb"))
    rig.cache.finish(first)  # it has ended before
    rig.cache.finish(second)
    rig.cache.check_integrity()


def test_outputs_are_recorded_though_the_tier_does_not_get_them() -> None:
    rig = Rig(10)
    request = rig.cache.begin("x", "agent", "", _path("aa"))
    assert request is not None
    rig.cache.advance(request, 2)
    request.extend(_path("aabb"))
    rig.cache.finish(request)
    rig.cache.retire("x")
    assert [(step.prompt_blocks, step.output_blocks) for step in rig.ended[0].steps] == [(2, 2)]
    assert rig.kept == set(_path("aa"))


def test_silent_workflows_and_those_beyond_the_bound_have_ended() -> None:
    rig = Rig(20, max_workflows=2)
    rig.run("x", _path("a"))
    rig.run("y", _path("b"))
    rig.run("z", _path("ab"))
    assert [log.workflow for log in rig.ended] == ["x"]
    rig.clock.advance(1000.0)
    rig.run("z", _path("ba"))
    assert [log.workflow for log in rig.ended] == ["x", "y", "z"]


def test_after_a_reset_nothing_is_kept_and_running_requests_are_over() -> None:
    rig = Rig(10)
    request = rig.cache.begin("x", "agent", "", _path("aa"))
    assert request is not None
    rig.cache.advance(request, 2)
    rig.cache.clear()
    rig.cache.advance(request, 2)
    rig.cache.finish(request)
    rig.kept.clear()  # the tier's own are gone as well
    rig.run("x", _path("aa"))
    assert rig.kept == set(_path("aa"))
    rig.cache.check_integrity()
