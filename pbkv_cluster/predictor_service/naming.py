"""Forecasts of columns as forecasts of agents by their names."""

from collections.abc import Sequence
from itertools import islice, pairwise

import numpy as np

from pbkv_cluster.core.forecast import StepForecast
from pbkv_cluster.predictor_service.experts import Floats
from pbkv_cluster.predictor_service.track import Track
from pbkv_cluster.predictor_service.workload_model import WorkloadModel

NAMED_AGENTS = 32  # a step names at most these many of its likeliest agents
NAMED_FROM = 1e-3  # and none that is less likely than this, if the workflow goes on, but for those it has invented itself

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
    alive = np.where(known, survival, 1.0).ravel().tolist()
    names, columns = model.labels.agents()
    shared = rows.take(columns, axis=2) / survival[:, :, None]
    told = shared >= NAMED_FROM
    if len(names) > NAMED_AGENTS:
        likeliest = np.zeros_like(told)
        np.put_along_axis(likeliest, np.argpartition(-shared, NAMED_AGENTS, axis=2)[:, :, :NAMED_AGENTS], True, axis=2)
        told &= likeliest
    called = [names[place] for place in np.nonzero(told)[2].tolist()]
    chances = shared[told].tolist()
    ends = told.sum(axis=2).cumsum().tolist()
    spans = pairwise([0, *ends])
    agents = [dict(zip(called[start:end], chances[start:end], strict=True)) for start, end in spans]
    steps = rows.shape[1]
    for at, track in enumerate(tracks):
        if track is not None and track.own:
            for agent, label in track.own.items():
                column = model.labels.column(label)
                if column > 0 and label != agent:
                    every = (rows[at, :, column] / survival[at]).tolist()
                    for each, chance in zip(agents[at * steps : (at + 1) * steps], every, strict=True):
                        each[agent] = each.get(agent, 0.0) + chance
    each_step = map(StepForecast, agents, alive)
    return [tuple(islice(each_step, steps)) for _ in tracks]
