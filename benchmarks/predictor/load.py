"""What forecasting costs: time per batch and per event, and memory per open workflow."""

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from benchmarks.report import Figure, Report
from benchmarks.timing import seconds
from pbkv_cluster.cluster.membership.member_base import collect_rarely
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.experts import EXPERTS
from pbkv_cluster.predictor_service.predictor import PREDICTORS, Predictor
from pbkv_cluster.simulator.prediction.training import train_predictor
from pbkv_cluster.simulator.prediction.trial import Events

NETWORK = "pbkv"  # the expert that costs most
BATCH = 1024
_ROUNDS = 15
_OPEN_EVENTS = 9  # of an open workflow: its start, and start and end of four steps


def speed(train: Sequence[Events], test: Sequence[Events], quick: bool) -> Report:
    """Times forecasts of many workflows at once, and events one at a time."""
    collect_rarely()  # as a predictor's process does
    rounds, events = (3, 200) if quick else (_ROUNDS, 4000)
    figures = list[Figure]()
    for name, config, goal in _configurations():
        predictor = _taught(config, train[: 20 if quick else None])
        taken = [1e3 * each for each in _batches(predictor, test, rounds)]
        figures.append(Figure(f"{BATCH:,} forecasts, {name}", median(taken), "ms", at_most=goal))
        if name == _MIXTURE:
            figures.append(Figure("event: observe, forecast, learn", _events_per_second(predictor, test, events), "1/s"))
    sizes = f"{len(train):,} workflows learnt; medians of {rounds} rounds, each after another event of all {BATCH:,} workflows"
    return Report("predictor: speed", sizes, tuple(figures))


_MIXTURE = "the default mixture"


def _configurations() -> Iterator[tuple[str, PredictorConfig, float | None]]:
    config = PredictorConfig()
    experts = [name.strip() for name in config.experts.split(",")]
    yield _MIXTURE, config, 10.0 if NETWORK in experts else 1.6
    if NETWORK in EXPERTS.names():
        with_network = ",".join(dict.fromkeys((*experts, NETWORK)))
        without = ",".join(name for name in experts if name != NETWORK)
        if NETWORK in experts:
            yield f"the same without {NETWORK}", config.model_copy(update={"experts": without}), 1.6
        else:
            yield f"the same with {NETWORK}", config.model_copy(update={"experts": with_network}), 10.0
    for name in EXPERTS.names():
        yield f"{name} alone", config.model_copy(update={"experts": name}), None


def _taught(config: PredictorConfig, train: Sequence[Events]) -> Predictor:
    predictor = PREDICTORS.get(config.model)(config)
    train_predictor(predictor, train)
    return predictor


def _batches(predictor: Predictor, test: Sequence[Events], rounds: int) -> Iterator[float]:
    """Seconds for each batch of forecasts. Every workflow has a new event before each, so that no forecast can be reused."""
    streams = [copies(test, number) for number in range(BATCH)]
    names = [f"open-{number}" for number in range(BATCH)]
    for stream in streams:
        predictor.observe(next(stream))
    for epoch in range(rounds):
        for stream in streams:
            predictor.observe(next(stream))
        yield seconds(partial(predictor.forecast, names, epoch, 0.0))
        predictor.learn()


def copies(test: Sequence[Events], number: int) -> Iterator[WorkflowEvent]:
    """Endless events of one of the workflows under an id of its own: its steps are repeated, and its end is left out."""
    chosen = [event for event in test[number % len(test)] if event.kind is not EventKind.WORKFLOW_ENDED]
    repeated = chain(chosen, cycle(event for event in chosen if event.agent))
    for sequence, event in enumerate(repeated):
        yield replace(event, workflow=f"open-{number}", sequence=sequence, step=max(0, (sequence - 1) // 2))


def _events_per_second(predictor: Predictor, test: Sequence[Events], limit: int) -> float:
    events = list(islice((event for events in test for event in events), limit))

    def run() -> None:
        for event in events:
            predictor.observe(event)
            if event.kind is not EventKind.WORKFLOW_ENDED:
                predictor.forecast([event.workflow], event.sequence, event.time)
            predictor.learn()

    return len(events) / seconds(run)


def memory(train: Sequence[Events], test: Sequence[Events], quick: bool) -> Report:
    """Memory of open workflows in a predictor's process."""
    workflows = 2_000 if quick else 100_000
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_hold, args=(sender, list(train[:200]), list(test), workflows))
    process.start()
    sender.close()
    try:
        taken = float(receiver.recv())
    finally:
        process.join()
    figures = (
        Figure(f"{workflows:,} open workflows", taken / 2**30, "GiB", at_most=None if quick else 2),
        Figure("one of them", taken / workflows / 1024, "KiB"),
    )
    steps = (_OPEN_EVENTS - 1) // 2
    sizes = f"growth of a process; each workflow has begun up to {steps} steps, and was forecast after each event"
    return Report("predictor: memory", sizes, figures)


def _hold(sender: Connection, train: Sequence[Events], test: Sequence[Events], workflows: int) -> None:
    """Opens workflows in this process, and sends by how many bytes it grew."""
    predictor = _taught(PredictorConfig(), train)
    predictor.learning = False  # it would take long, and keeps nothing in an open workflow
    before = _resident()
    for start in range(0, workflows, BATCH):
        opened = [_opened(test, number) for number in range(start, min(workflows, start + BATCH))]
        for position in range(_OPEN_EVENTS):
            events = [each[position] for each in opened if position < len(each)]
            for event in events:
                predictor.observe(event)
            predictor.forecast([event.workflow for event in events], position, 0.0)
    sender.send(_resident() - before)
    sender.close()


def _opened(test: Sequence[Events], number: int) -> list[WorkflowEvent]:
    """The first events of a workflow. Their pieces and words are new objects, as they are when they come over the wire."""
    events = islice(copies(test, number), min(_OPEN_EVENTS, len(test[number % len(test)]) - 1))
    return [
        replace(event, pieces=tuple(piece + 0 for piece in event.pieces), words=tuple(word + 0 for word in event.words))
        for event in events
    ]


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell the resident memory")
