"""Forecasts of columns as forecasts of agents by their names."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.compiled import compiled
from pbkv_cluster.predictor_service.experts import Floats
from pbkv_cluster.predictor_service.workflow.prediction_state import PredictionState
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel

NAMED_AGENTS = 32  # a step names at most these many of its likeliest agents
NAMED_FROM = 1e-3  # and none that is less likely than this, if the workflow goes on, but for those it has invented itself

_TINY = np.finfo(np.float32).tiny  # a certain end leaves this much


class Named(NamedTuple):
    """Steps of forecasts, as `Forecasts` holds them."""

    survival: Floats
    named: npt.NDArray[np.int32]
    agents: npt.NDArray[np.int32]
    chances: Floats
    names: Sequence[str]


def named(model: WorkloadModel, tracks: Sequence[PredictionState | None], rows: Floats) -> Named:
    """Forecasts by agents' names.

    Args:
        model: of the workload.
        tracks: of the workflows.
        rows: probabilities [workflows, K, columns].
    """
    names, columns = model.labels.agents()
    steps = rows.shape[:2]
    survival, counts = np.empty(steps, dtype=np.float32), np.empty(steps, dtype=np.int32)
    agents = np.empty(counts.size * min(len(names), NAMED_AGENTS), dtype=np.int32)
    chances = np.empty(len(agents), dtype=np.float32)
    end = _name(rows, columns, survival, counts, agents, chances)
    found = Named(survival, counts, agents[:end].copy(), chances[:end].copy(), names)
    inventive = [at for at, track in enumerate(tracks) if track is not None and track.own]
    return _with_own(model, tracks, rows, found, inventive) if inventive else found


@compiled
def _name(
    rows: Floats,
    columns: npt.NDArray[np.intp],
    survival: Floats,
    counts: npt.NDArray[np.int32],
    agents: npt.NDArray[np.int32],
    chances: Floats,
) -> int:
    """Fills in the fields of `Named`. Returns how many agents are named."""
    end = 0
    for at in range(rows.shape[0]):
        for step in range(rows.shape[1]):
            row = rows[at, step]
            alive = np.float32(0.0)
            for column in range(1, len(row)):  # 1 - P(end) would have no digits left near a certain end
                alive += row[column]
            known = alive + row[0] > 0.0
            alive = min(max(alive, _TINY), np.float32(1.0))
            survival[at, step] = alive if known else 1.0
            begin = end
            for agent in range(len(columns)):
                chance = row[columns[agent]] / alive
                if chance < NAMED_FROM:
                    continue
                place = end
                if end - begin < NAMED_AGENTS:
                    end += 1
                else:
                    place = begin + int(chances[begin:end].argmin())
                    if chances[place] >= chance:
                        continue
                agents[place], chances[place] = agent, chance
            counts[at, step] = end - begin
    return end


def _with_own(
    model: WorkloadModel, tracks: Sequence[PredictionState | None], rows: Floats, found: Named, inventive: Sequence[int]
) -> Named:
    """Adds agents that go by another label, because their workflow alone calls them."""
    horizon = rows.shape[1]
    positions = {name: at for at, name in enumerate(found.names)}
    agents, chances, steps = list[int](), list[float](), list[int]()
    for at in inventive:
        track = tracks[at]
        assert track is not None
        for agent, label in track.own.items():
            column = model.labels.column(label)
            if column > 0 and label != agent:
                agents += [positions.setdefault(agent, len(positions))] * horizon
                chances += (rows[at, :, column] / found.survival[at]).tolist()
                steps += range(at * horizon, (at + 1) * horizon)
    if not agents:
        return found
    every = np.concatenate((np.arange(found.named.size).repeat(found.named.ravel()), steps))
    # An agent that has got a label of its own meanwhile has two shares of a step.
    keys, places = np.unique(every * len(positions) + np.concatenate((found.agents, agents)), return_inverse=True)
    return Named(
        found.survival,
        np.bincount(keys // len(positions), minlength=found.named.size).reshape(found.named.shape).astype(np.int32),
        (keys % len(positions)).astype(np.int32),
        np.bincount(places, np.concatenate((found.chances, chances))).astype(np.float32),
        list(positions),
    )
