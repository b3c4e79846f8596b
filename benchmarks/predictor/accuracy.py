"""How often the likeliest forecast is right. Figures are means over workloads, each with the same weight."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.report import Figure, Report
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.predictor import PREDICTORS
from pbkv_cluster.simulator.prediction.scores import Score, Scores, When, evaluate
from pbkv_cluster.simulator.prediction.training import train_predictor
from pbkv_cluster.simulator.prediction.trial import Events, recorded_events
from pbkv_cluster.simulator.traces.files import load_trace
from pbkv_cluster.simulator.traces.split import split
from pbkv_cluster.simulator.workload.events import without_counts, without_pieces, without_text, without_words

SHARES = {"train": 0.6, "test": 0.4}
SALT = "prediction"  # of the split
STEPS = (1, 2, 3)
ADAPTED = 20  # workflows after which a predictor must have adapted to a change
COLD = 100  # workflows after which an untrained predictor must have caught up

ALONE_GOALS = (0.89, 0.82, 0.77)  # from agents alone
BEFORE_GOALS = (0.915, 0.845, 0.795)  # before the output
AFTER_GOALS = (0.96, 0.89, 0.83)
ERROR_GOALS = (0.02, 0.03, 0.03)  # of calibration
GAP_GOAL = 0.03

Change = Callable[[Events], Events]


@dataclass(frozen=True, slots=True)
class Recorded:
    """The events of one workload."""

    workload: str
    train: list[Events]
    test: list[Events]


def read(path: Path, limit: int | None, number: int = 0) -> Recorded:
    """A trace split by task, with at most `limit` workflows in each part. Each `number` is another split."""
    trace = load_trace(path)
    parts = split(trace, SHARES, f"{SALT}/{number}" if number else SALT)
    train, test = (recorded_events(parts[name].workflows[:limit], f"{trace.name}-{name}") for name in SHARES)
    if not train or not test:
        raise ValueError(f"{path}: has too few tasks to be split")
    return Recorded(trace.name, train, test)


def accuracy(recorded: Sequence[Recorded]) -> Report:
    """Accuracy with and without training, and with and without text."""
    config = PredictorConfig(horizon=max(STEPS))
    full = [_score(config, each.train, each.test) for each in recorded]
    alone = [_score(config, each.train, each.test, lambda events: list(without_text(events))) for each in recorded]
    markov = [_score(config.model_copy(update={"model": "markov"}), each.train, each.test) for each in recorded]
    long = [(each, scores) for each, scores in zip(recorded, full, strict=True) if len(each.train) > COLD]
    cold = [_score(config, each.train[:COLD], each.test) for each, _ in long]
    figures = [
        *_figures("from agents alone", alone, "before", ALONE_GOALS),
        *_figures("before the output", full, "before", BEFORE_GOALS),
        *_figures("after the output", full, "after", AFTER_GOALS),
        *_figures("markov alone", markov, "after"),
    ]
    figures += [
        Figure(f"calibration error after the output, k={k}", _mean(full, "after", k, "calibration_error"), "", at_most=goal)
        for k, goal in zip(STEPS, ERROR_GOALS, strict=True)
    ]
    figures += [
        Figure(f"the same, all workloads' forecasts together, k={k}", _together(full, "after", k).calibration_error, "")
        for k in STEPS
    ]
    if long:
        trained = [scores for _, scores in long]
        what = f"lost after {COLD} workflows from nothing, after the output"
        figures += _gaps(what, trained, cold)
    details = [
        Figure(f"{each.workload}, {what}, {when} the output, k={k}: {column}", getattr(scores[when, k], column), "")
        for what, found in (("all", full), ("agents alone", alone), ("markov", markov))
        for each, scores in zip(recorded, found, strict=True)
        for when, k in scores
        for column in ("top1", "top3", "log_loss", "calibration_error")
        if _splits(recorded) == 1  # of several splits, means suffice
    ]
    sizes = f"{_sizes(recorded)}; experts {config.experts}; from nothing: {len(long)} with more than {COLD} to learn"
    return Report("predictor: accuracy", sizes, tuple(figures), tuple(details))


def drift(recorded: Sequence[Recorded]) -> Report:
    """What is lost 20 workflows after a change: all agents renamed, or another workload's workflows under the same name."""
    config = PredictorConfig(horizon=max(STEPS))
    steady, renamed, swapped = list[Scores](), list[Scores](), list[Scores]()
    for number, each in enumerate(recorded):
        steady.append(_score(config, each.train, each.test))
        rename = _renaming(each, seed=number)
        # The workflows that show the change are not trained on before it, so that their texts give nothing away.
        known, shown = each.train[:-ADAPTED], each.train[-ADAPTED:]
        renamed.append(_score(config, [*known, *map(rename, shown)], [*map(rename, each.test)]))
    for each, other in zip(recorded, [*recorded[1:], *recorded[:1]], strict=True):

        def move(events: Events, workload: str = each.test[0][0].workload) -> Events:
            return [replace(event, workload=workload) for event in events]

        swapped.append(_score(config, [*each.train, *map(move, other.train[:ADAPTED])], [*map(move, other.test)]))
    figures = [
        *_gaps(f"lost {ADAPTED} workflows after all agents were renamed", steady, renamed),
        *_gaps(f"lost {ADAPTED} workflows after another workload took over", [*steady[1:], *steady[:1]], swapped),
    ]
    return Report("predictor: drift", f"{_sizes(recorded)}; after the output", tuple(figures))


def ablation(recorded: Sequence[Recorded]) -> Report:
    """Accuracy without each expert, with each expert alone, and without words, pieces or lengths of texts."""
    config = PredictorConfig(horizon=max(STEPS))
    experts = [name.strip() for name in config.experts.split(",")]
    variants: dict[str, tuple[PredictorConfig, Change]] = {"the mixture": (config, list)}
    for name in experts:
        others = [other for other in experts if other != name]
        if others:
            variants[f"without {name}"] = config.model_copy(update={"experts": ",".join(others)}), list
            variants[f"{name} alone"] = config.model_copy(update={"experts": name}), list
    variants["without pieces of prompts"] = config, lambda events: list(without_pieces(events))
    variants["without words"] = config, lambda events: list(without_words(events))
    variants["without numbers of tokens"] = config, lambda events: list(without_counts(events))
    figures = list[Figure]()
    for name, (each, change) in variants.items():
        found = [_score(each, part.train, part.test, change) for part in recorded]
        for when in ("before", "after"):
            figures += _figures(f"{name}, {when} the output", found, when)
    return Report("predictor: ablation", f"{_sizes(recorded)}; experts {config.experts}", tuple(figures))


def _score(config: PredictorConfig, train: Iterable[Events], test: Iterable[Events], change: Change = list) -> Scores:
    """Scores of a predictor that was trained, and learns from the test workflows too."""
    predictor = PREDICTORS.get(config.model)(config)
    train_predictor(predictor, map(change, train))
    return evaluate(predictor, map(change, test), online=True)


def _renaming(recorded: Recorded, seed: int) -> Change:
    """Renames all agents. Each gets a new name that is made of another agent's."""
    agents = sorted({event.agent for events in (*recorded.train, *recorded.test) for event in events} - {""})
    names = [f"{agent}, renamed" for agent in agents]
    random.Random(f"drift/{seed}").shuffle(names)
    called = dict(zip(agents, names, strict=True)) | {"": ""}
    return lambda events: [replace(event, agent=called[event.agent]) for event in events]


def _figures(what: str, found: Sequence[Scores], when: When, goals: Sequence[float | None] = (None,) * 3) -> list[Figure]:
    return [
        Figure(f"{what}: top-1, k={k}", _mean(found, when, k, "top1"), "", at_least=goal)
        for k, goal in zip(STEPS, goals, strict=True)
    ]


def _gaps(what: str, reference: Sequence[Scores], found: Sequence[Scores]) -> list[Figure]:
    return [
        Figure(
            f"{what}: top-1, k={k}",
            _mean(reference, "after", k, "top1") - _mean(found, "after", k, "top1"),
            "",
            at_most=GAP_GOAL,
        )
        for k in STEPS
    ]


def _mean(found: Sequence[Scores], when: When, k: int, column: str) -> float:
    return math.fsum(getattr(scores[when, k], column) for scores in found) / len(found)


def _together(found: Sequence[Scores], when: When, k: int) -> Score:
    whole = Score()
    for scores in found:
        whole += scores[when, k]
    return whole


def _sizes(recorded: Sequence[Recorded]) -> str:
    train, test = (sum(len(getattr(each, name)) for each in recorded) for name in ("train", "test"))
    splits = _splits(recorded)
    workloads = len(recorded) // splits
    of = f"{workloads} workloads" if splits == 1 else f"{workloads} workloads, split in {splits} ways"
    return f"{of}; {train:,} workflows learnt, then {test:,} forecast while learning on"


def _splits(recorded: Sequence[Recorded]) -> int:
    return len(recorded) // len({each.workload for each in recorded})
