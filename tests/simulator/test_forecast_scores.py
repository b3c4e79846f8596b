"""Scores of forecasts, by hand and with the real predictor, and the events that predictors get of recorded workflows."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.core.forecasts.forecast import Forecast, StepForecast
from pbkv_cluster.core.text.prompt_pieces import prompt_pieces
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.predictor import PREDICTORS, Predictor
from pbkv_cluster.simulator.prediction.scores import END, Score, evaluate
from pbkv_cluster.simulator.prediction.training import train_predictor
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow
from pbkv_cluster.simulator.workload.events import events_of, without_counts, without_pieces, without_text, without_words
from pbkv_cluster.simulator.workload.prompts import PromptBuilder


class Scripted(Predictor):
    """Makes the same forecast every time, and records what it sees."""

    kind: ClassVar[str] = "scripted"
    version: ClassVar[int] = 1

    def __init__(self, *steps: StepForecast) -> None:
        self.steps = steps
        self.seen: list[WorkflowEvent] = []
        self.asked: list[int] = []  # events seen by the time of each forecast
        self.learnt = 0
        self.modes: set[bool] = set()

    def observe(self, event: WorkflowEvent) -> None:
        self.seen.append(event)
        self.modes.add(self.learning)

    def forecast(self, workflows: Sequence[str], epoch: int, made_at: float) -> Forecasts:
        self.asked.append(len(self.seen))
        return Forecasts.of([Forecast(name, epoch, made_at, self.steps) for name in workflows])

    def learn(self) -> None:
        self.learnt += 1

    def forget(self, workflow: str) -> None:
        pass

    def dump(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None:
        pass


def workflow(agents: str, number: int = 0, words: bool = True) -> TraceWorkflow:
    """One step per letter. Prompts grow, so that each step has other pieces."""
    steps = []
    for position, agent in enumerate(agents):
        prompt = tuple(Segment(SegmentKind.HISTORY, f"text-{at}", 200) for at in range(position + 1))
        step = TraceStep(agent, prompt, f"out-{number}-{position}", 10 * position, call_site=f"site-{agent}")
        if words:
            step = replace(step, words=(position, 7), task_words=(99,) if position == 0 else ())
        steps.append(step)
    return TraceWorkflow(f"w{number}", "app", tuple(steps))


def test_a_score_by_hand() -> None:
    score = Score()
    score.add({"a": 0.6, "b": 0.3, END: 0.1}, "a")
    score.add({"a": 0.6, "b": 0.3, END: 0.1}, END)
    score.add({"a": 0.4, "b": 0.3, "c": 0.2, END: 0.1}, END)
    score.add({"a": 0.9, END: 0.1}, "new")
    assert len(score) == 4
    assert score.top1 == 1 / 4
    assert score.top3 == 2 / 4, "of four outcomes the least likely is none of three, and what nobody named is none at all"
    assert score.log_loss == pytest.approx(-(math.log(0.6) + 2 * math.log(0.1) + math.log(1e-6)) / 4)
    # Bins of 1/15: 0.6 twice, right once; 0.4, wrong; 0.9, wrong.
    assert score.calibration_error == pytest.approx((abs(2 * 0.6 - 1) + 0.4 + 0.9) / 4)


def test_errors_in_one_bin_cancel_and_those_in_two_do_not() -> None:
    same, apart = Score(), Score()
    for came in ("a", "a", "a", "b"):
        same.add({"a": 0.75, "b": 0.25}, came)
    apart.add({"a": 0.5}, "a")
    apart.add({"a": 1.0}, "b")
    assert same.calibration_error == pytest.approx(0.0)
    assert apart.calibration_error == pytest.approx((0.5 + 1.0) / 2)


def test_an_empty_forecast_is_wrong_whatever_the_outcome() -> None:
    score = Score()
    score.add({END: 0.0}, END)
    score.add({}, "a")
    assert (score.top1, score.top3, score.calibration_error) == (0.0, 0.0, 0.0)
    assert score.log_loss == pytest.approx(-math.log(1e-6))


def test_without_forecasts_there_are_no_figures() -> None:
    score = Score()
    assert all(math.isnan(value) for value in (score.top1, score.top3, score.log_loss, score.calibration_error))


def test_scores_add_up() -> None:
    first, second, both = Score(), Score(), Score()
    for score, came in ((first, "a"), (second, "b")):
        score.add({"a": 0.7, "b": 0.3}, came)
        both.add({"a": 0.7, "b": 0.3}, came)
    first += second
    assert (len(first), first.top1, first.log_loss, first.calibration_error) == (
        len(both),
        both.top1,
        both.log_loss,
        both.calibration_error,
    )


def test_each_step_is_scored_before_and_after_its_output_with_the_end_as_an_outcome() -> None:
    predictor = Scripted(StepForecast({"b": 0.5, "a": 0.5}, 0.8), StepForecast({"b": 1.0}, 0.25))
    scores = evaluate(predictor, [events_of(workflow("ab"), "w")], online=True)
    assert {key: len(score) for key, score in scores.items()} == dict.fromkeys(
        [("before", 1), ("after", 1), ("before", 2), ("after", 2)], 2
    )
    # One step ahead: the outcomes are b, forecast at .4, and the end, at .2. Two steps ahead: the end both times, at .75.
    assert scores["before", 1].top1 == scores["after", 1].top1 == 1 / 2
    assert scores["before", 1].log_loss == pytest.approx(-(math.log(0.4) + math.log(0.2)) / 2)
    assert scores["after", 2].top1 == 1.0
    assert scores["after", 2].log_loss == pytest.approx(-math.log(0.75))


def test_no_forecast_sees_later_events() -> None:
    predictor = Scripted(StepForecast({"a": 1.0}, 1.0))
    events = events_of(workflow("aba"), "w")
    evaluate(predictor, [events], online=False)
    assert predictor.seen == events
    assert predictor.asked == [number + 1 for number, event in enumerate(events) if event.agent], "after each step event"
    assert predictor.learnt == len(events)


@pytest.mark.parametrize("online", [False, True])
def test_evaluation_restores_the_learning_mode(online: bool) -> None:
    predictor = Scripted(StepForecast({}, 1.0))
    told: list[None] = []
    evaluate(predictor, [events_of(workflow("a"), "w")] * 2, online, lambda: told.append(None))
    assert predictor.modes == {online}
    assert predictor.learning
    assert len(told) == 2


def test_a_failed_evaluation_restores_the_learning_mode() -> None:
    def fail() -> None:
        raise RuntimeError("interrupted")

    predictor = Scripted(StepForecast({}, 1.0))
    with pytest.raises(RuntimeError, match="interrupted"):
        evaluate(predictor, [events_of(workflow("a"), "w")], False, fail)
    assert predictor.learning


def test_the_real_predictor_learns_a_cycle() -> None:
    predictor = PREDICTORS.get("mixture")(PredictorConfig())
    train_predictor(predictor, (events_of(workflow("abcabc", number), f"t{number}") for number in range(12)))
    scores = evaluate(predictor, [events_of(workflow("abcabc"), "w")], online=False)
    assert all(score.top1 == 1.0 for score in scores.values())
    other = [events_of(workflow("aaaa"), f"v{number}") for number in range(40)]
    assert evaluate(predictor, other, online=False)["after", 1].top1 == 0.0, "it does not learn"
    assert evaluate(predictor, other, online=True)["after", 1].top1 > 0.5
    assert evaluate(predictor, other, online=False)["after", 1].top1 == 1.0


def test_events_of_a_workflow() -> None:
    record = workflow("ab")
    prompts = PromptBuilder(1 << 16)
    events = events_of(record, "run-1", prompts)
    kinds = [
        EventKind.WORKFLOW_STARTED,
        *(EventKind.STEP_STARTED, EventKind.STEP_FINISHED) * 2,
        EventKind.WORKFLOW_ENDED,
    ]
    assert [event.kind for event in events] == kinds
    assert [event.sequence for event in events] == list(range(6))
    assert all(event.workflow == "run-1" and event.workload == "app" for event in events)
    assert [(event.agent, event.step, event.parent_step) for event in events[1:5]] == [
        ("a", 0, None),
        ("a", 0, None),
        ("b", 1, 0),
        ("b", 1, 0),
    ]
    assert [event.pieces for event in events] == [
        (),
        prompt_pieces(prompts.prompt(record.steps[0])),
        (),
        prompt_pieces(prompts.prompt(record.steps[1])),
        (),
        (),
    ]
    assert events[1].pieces
    assert [event.words for event in events] == [(), (99,), (0, 7), (), (1, 7), ()]
    assert [event.prompt_tokens for event in events] == [0, 200, 200, 400, 400, 0]
    assert [event.output_tokens for event in events] == [0, 0, 1, 0, 10, 0], "no model answers with nothing"


def test_events_have_words_only_if_they_were_logged() -> None:
    events = events_of(workflow("ab", words=False), "w")
    assert not any(event.words or event.pieces for event in events)


def test_parts_of_events_can_be_left_out() -> None:
    events = events_of(workflow("ab"), "w", PromptBuilder(1 << 16))
    every = {"words", "pieces", "tokens"}
    for lacking, left in (
        (without_words, {"pieces", "tokens"}),
        (without_pieces, {"words", "tokens"}),
        (without_counts, {"words", "pieces"}),
        (without_text, set[str]()),
    ):
        found = list(lacking(events))
        has = {"words": [each.words for each in found], "pieces": [each.pieces for each in found]}
        has["tokens"] = [(1,) if each.prompt_tokens or each.output_tokens else () for each in found]
        assert {name for name in every if any(has[name])} == left
        nothing: dict[str, Any] = {"words": (), "pieces": (), "prompt_tokens": 0, "output_tokens": 0}
        assert [replace(each, **nothing) for each in found] == [replace(each, **nothing) for each in events]
