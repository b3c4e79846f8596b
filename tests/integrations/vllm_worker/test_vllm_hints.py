"""What the predictor broadcasts reaches vLLM with the next requests, and there the policy of its CPU tier."""

from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.integrations.kv_hints import HintMaker, KvHintsEnvelope
from pbkv_cluster.integrations.vllm_policy.request import forecasts_of
from pbkv_cluster.integrations.vllm_worker.hints import HintBook


class Context:
    """What the policy is shown of a request."""

    req_id = "request"
    kv_transfer_params = None

    def __init__(self, hints: KvHintsEnvelope | None) -> None:
        self.kv_hints = hints


def book(max_workflows: int = 16) -> HintBook:
    return HintBook(HintMaker(), ManualClock(50.0), max_workflows)


def forecast(workflow: str, epoch: int = 1, agent: str = "coder") -> Forecast:
    return Forecast(workflow, epoch, 10.0 + epoch, (StepForecast({agent: 1.0}, 1.0),), 0.5, 3)


def reached(hints: KvHintsEnvelope | None) -> list[tuple[str, int, bool]]:
    """The forecasts that the policy takes from a request's hints."""
    return [(each.workflow, each.epoch, each.ended) for each in forecasts_of(Context(hints))]  # type: ignore[arg-type]


def test_a_request_carries_its_own_forecast_and_what_is_new() -> None:
    hints = book()
    assert hints.envelope("a") is None
    for each in (forecast("a"), forecast("b"), forecast("b", 2), forecast("c")):
        hints.heard(each)
    assert (hints.received, hints.made_at) == (4, 12.0)
    assert reached(hints.envelope("c")) == [("c", 1, False), ("a", 1, False), ("b", 2, False)]
    assert reached(hints.envelope("a")) == [("a", 1, False)]
    assert hints.envelope("unknown") is None


def test_the_forecast_itself_arrives() -> None:
    hints = book()
    hints.heard(forecast("a", agent="tester"))
    (arrived,) = forecasts_of(Context(hints.envelope("a")))  # type: ignore[arg-type]
    assert arrived == forecast("a", agent="tester")


def test_the_end_of_a_workflow_is_told_once_and_replaces_its_forecast() -> None:
    hints = book()
    hints.heard(forecast("a", 4))
    hints.retired("a")
    hints.retired("never heard of")
    assert reached(hints.envelope("b")) == [("a", 5, True)]
    assert hints.envelope("b") is None
    hints.heard(Forecast("b", 9, 1.0, (), ended=True))
    assert reached(hints.envelope("c")) == [("b", 9, True)]


def test_many_forecasts_go_with_several_requests() -> None:
    hints = book(max_workflows=200)
    for number in range(150):
        hints.heard(forecast(f"w{number}"))
    told = [len(reached(hints.envelope("unknown"))) for _ in range(3)]
    assert told == [64, 64, 22]


def test_the_workflows_heard_of_longest_ago_are_dropped() -> None:
    hints = book(max_workflows=2)
    for name in ("a", "b", "a", "c"):
        hints.heard(forecast(name))
    assert reached(hints.envelope("none")) == [("a", 1, False), ("c", 1, False)]
