"""Forecasts of columns turned into forecasts of agents by name."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pbkv_cluster.predictor_service.experts import Floats
from pbkv_cluster.predictor_service.jit import jit
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel

MAX_AGENTS = 32  # named in each step: the likeliest ones
MIN_PROBABILITY = 1e-3  # of a named agent, if the workflow goes on; agents with a label of one workflow's own may have less

_TINY = np.finfo(np.float32).tiny  # least survival


class AgentForecasts(NamedTuple):
    """The steps of forecasts, as `Forecasts` holds them."""

    survival: Floats
    agent_counts: npt.NDArray[np.int32]
    agent_positions: npt.NDArray[np.int32]
    probabilities: Floats
    agent_names: Sequence[str]

    @classmethod
    def unknown(cls, workflows: int, horizon: int) -> "AgentForecasts":
        """Forecasts of workflows of which nothing is known: they go on, with any agents."""
        shape, no_agents = (workflows, horizon), np.zeros(0, dtype=np.int32)
        return cls(np.ones(shape, np.float32), np.zeros(shape, np.int32), no_agents, no_agents.astype(np.float32), [])


def agent_forecasts(model: WorkloadModel, own_labels: Sequence[Mapping[str, str]], rows: Floats) -> AgentForecasts:
    """Forecasts by agents' names.

    Args:
        model: of the workload.
        own_labels: of each workflow, labels of agents that had none of their own.
        rows: probabilities [workflows, K, columns].
    """
    names, columns = model.labels.agents()
    steps = rows.shape[:2]
    survival, counts = np.empty(steps, dtype=np.float32), np.empty(steps, dtype=np.int32)
    agents = np.empty(counts.size * min(len(names), MAX_AGENTS), dtype=np.int32)
    probabilities = np.empty(len(agents), dtype=np.float32)
    end = _name_agents(rows, columns, survival, counts, agents, probabilities)
    found = AgentForecasts(survival, counts, agents[:end].copy(), probabilities[:end].copy(), names)
    return _with_own(model, own_labels, rows, found) if any(own_labels) else found


@jit
def _name_agents(
    rows: Floats,
    columns: npt.NDArray[np.intp],
    survival: Floats,
    counts: npt.NDArray[np.int32],
    agents: npt.NDArray[np.int32],
    probabilities: Floats,
) -> int:
    """Writes the fields of `AgentForecasts`. Returns the number of agents in all steps together."""
    end = 0
    for at in range(rows.shape[0]):
        for step in range(rows.shape[1]):
            row = rows[at, step]
            alive = np.float32(0.0)
            for column in range(1, len(row)):  # 1 - P(end) would lose all digits near a certain end
                alive += row[column]
            known = alive + row[0] > 0.0
            alive = min(max(alive, _TINY), np.float32(1.0))
            survival[at, step] = alive if known else 1.0
            begin = end
            for agent in range(len(columns)):
                probability = row[columns[agent]] / alive
                if probability < MIN_PROBABILITY:
                    continue
                position = end
                if end - begin < MAX_AGENTS:
                    end += 1
                else:
                    position = begin + int(probabilities[begin:end].argmin())
                    if probabilities[position] >= probability:
                        continue
                agents[position], probabilities[position] = agent, probability
            counts[at, step] = end - begin
    return end


def _with_own(
    model: WorkloadModel, own_labels: Sequence[Mapping[str, str]], rows: Floats, found: AgentForecasts
) -> AgentForecasts:
    """Adds the agents that have a label of their workflow's own."""
    horizon = rows.shape[1]
    positions = {name: at for at, name in enumerate(found.agent_names)}
    agents, probabilities, steps = list[int](), list[float](), list[int]()
    for at, labels in enumerate(own_labels):
        for agent, label in labels.items():
            column = model.labels.column(label)
            if column > 0 and label != agent:
                agents += [positions.setdefault(agent, len(positions))] * horizon
                probabilities += (rows[at, :, column] / found.survival[at]).tolist()
                steps += range(at * horizon, (at + 1) * horizon)
    if not agents:
        return found
    step_of = np.concatenate((np.arange(found.agent_counts.size).repeat(found.agent_counts.ravel()), steps))
    # An agent that several workflows have called by now is in a step under both of its labels: these add up.
    keys, groups = np.unique(step_of * len(positions) + np.concatenate((found.agent_positions, agents)), return_inverse=True)
    shape = found.agent_counts.shape
    return AgentForecasts(
        found.survival,
        np.bincount(keys // len(positions), minlength=found.agent_counts.size).reshape(shape).astype(np.int32),
        (keys % len(positions)).astype(np.int32),
        np.bincount(groups, np.concatenate((found.probabilities, probabilities))).astype(np.float32),
        list(positions),
    )
