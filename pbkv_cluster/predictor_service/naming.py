"""Forecasts of columns as forecasts of agents by their names."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.experts import Floats
from pbkv_cluster.predictor_service.track import Track
from pbkv_cluster.predictor_service.workload_model import WorkloadModel

NAMED_AGENTS = 32  # a step names at most these many of its likeliest agents
NAMED_FROM = 1e-3  # and none that is less likely than this, if the workflow goes on, but for those it has invented itself

_TINY = np.finfo(np.float32).tiny


class Named(NamedTuple):
    """Steps of forecasts, as `Forecasts` holds them."""

    survival: Floats
    named: npt.NDArray[np.int32]
    agents: npt.NDArray[np.int32]
    chances: Floats
    names: Sequence[str]


def named(model: WorkloadModel, tracks: Sequence[Track | None], rows: Floats) -> Named:
    """Forecasts by agents' names.

    Args:
        model: of the workload.
        tracks: of the workflows.
        rows: probabilities [workflows, K, columns].
    """
    survival = rows[:, :, 1:].sum(axis=2)  # 1 - P(end) would have no digits left near a certain end
    unknown = survival + rows[:, :, 0] == 0.0
    survival = np.minimum(np.maximum(survival, _TINY), 1.0)
    names, columns = model.labels.agents()
    shared = rows.take(columns, axis=2) / survival[:, :, None]
    survival[unknown] = 1.0
    told = shared >= NAMED_FROM
    if len(names) > NAMED_AGENTS:
        likeliest = np.zeros_like(told)
        np.put_along_axis(likeliest, np.argpartition(-shared, NAMED_AGENTS, axis=2)[:, :, :NAMED_AGENTS], True, axis=2)
        told &= likeliest
    found = Named(
        survival,
        told.sum(axis=2, dtype=np.int32),
        np.nonzero(told)[2].astype(np.int32),
        shared[told],
        names,
    )
    inventive = [at for at, track in enumerate(tracks) if track is not None and track.own]
    return _with_own(model, tracks, rows / survival[:, :, None], found, inventive) if inventive else found


def _with_own(
    model: WorkloadModel, tracks: Sequence[Track | None], rows: Floats, found: Named, inventive: Sequence[int]
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
                chances += rows[at, :, column].tolist()
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
