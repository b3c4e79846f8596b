"""Forecasts of columns as forecasts of agents by their names."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pbkv_cluster.core.forecast import StepForecast
from pbkv_cluster.predictor_service.experts import Floats
from pbkv_cluster.predictor_service.track import Track
from pbkv_cluster.predictor_service.workload_model import WorkloadModel

NAMED_AGENTS = 32  # a step names at most these many of its likeliest agents
NAMED_FROM = 1e-3  # and none that is less likely than this, if the workflow goes on

_TINY = np.finfo(np.float32).tiny


def steps_of(model: WorkloadModel, tracks: Sequence[Track | None], rows: Floats) -> list[tuple[StepForecast, ...]]:
    """Forecasts by agents' names.

    Args:
        model: of the workload.
        tracks: of the workflows.
        rows: probabilities [workflows, K, columns].
    """
    survival = rows[:, :, 1:].sum(axis=2)  # 1 - P(end) would have no digits left near a certain end
    known = survival + rows[:, :, 0] > 0.0
    survival = np.minimum(np.maximum(survival, _TINY), 1.0)
    alive = np.where(known, survival, 1.0).tolist()
    names, columns = model.labels.agents()
    shared = rows.take(columns, axis=2) / survival[:, :, None]
    likeliest: Any = None
    if len(names) > NAMED_AGENTS:
        chosen = np.argpartition(-shared, NAMED_AGENTS, axis=2)[:, :, :NAMED_AGENTS]
        shared, likeliest = np.take_along_axis(shared, chosen, axis=2), chosen.tolist()
    every, found = [names] * rows.shape[1], []
    for at, (track, chances) in enumerate(zip(tracks, shared.tolist(), strict=True)):
        called = every if likeliest is None else [[names[place] for place in places] for places in likeliest[at]]
        told = [
            {name: chance for name, chance in zip(known, row, strict=True) if chance >= NAMED_FROM}
            for known, row in zip(called, chances, strict=True)
        ]
        if track is not None and track.own:
            for agent, label in track.own.items():
                column = model.labels.column(label)
                if column > 0 and label != agent:
                    for each, chance in zip(told, (rows[at, :, column] / survival[at]).tolist(), strict=True):
                        each[agent] = each.get(agent, 0.0) + chance
        found.append(tuple(map(StepForecast, told, alive[at])))
    return found
