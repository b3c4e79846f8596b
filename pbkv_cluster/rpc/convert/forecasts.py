"""Forecasts: many in one message, in columns."""

import numpy as np

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.rpc.v1 import predictor_pb2


def forecasts_to_wire(forecasts: Forecasts, snapshot: bool = False) -> predictor_pb2.ForecastBatch:
    """One message. Each agent that a forecast names is spelled out once.

    `snapshot` tells the receiver to forget all other forecasts.
    """
    compact = forecasts.compact()
    is_step = np.arange(compact.survival.shape[1]) < compact.lengths[:, None]  # [N, K]: not beyond a forecast's length
    return predictor_pb2.ForecastBatch(
        agents=compact.agent_names,
        snapshot=snapshot,
        workflow_ids=compact.workflows,
        epochs=compact.epochs.tolist(),
        made_at_s=compact.made_at.tolist(),
        predictabilities=compact.predictability.tolist(),
        behind_steps=compact.after_steps.tolist(),
        ended=compact.ended.tolist(),
        step_counts=compact.lengths.tolist(),
        survivals=compact.survival[is_step].tolist(),
        agent_counts=compact.agent_counts[is_step].tolist(),
        agent_positions=compact.agent_positions.tolist(),
        probabilities=compact.probabilities.tolist(),
        workloads=compact.workloads,
    )


def forecasts_from_wire(batch: predictor_pb2.ForecastBatch) -> Forecasts:
    """The forecasts of a message.

    Raises:
        InvalidArgument: columns of the batch differ in length, or refer to an agent that the batch does not name.
    """
    number = len(batch.workflow_ids)
    columns = (batch.step_counts, batch.agent_counts, batch.agent_positions)
    lengths, counts, agents = (np.array(column, dtype=np.int64) for column in columns)  # wide enough for uint32
    for name, want in (
        ("epochs", number),
        ("made_at_s", number),
        ("predictabilities", number),
        ("behind_steps", number),
        ("ended", number),
        ("step_counts", number),
        ("workloads", number),
        ("survivals", lengths.sum()),
        ("agent_counts", lengths.sum()),
        ("agent_positions", counts.sum()),
        ("probabilities", counts.sum()),
    ):
        have = len(getattr(batch, name))
        if have != want:
            raise InvalidArgument(f"forecasts.{name}", f"must have {want} entries in this batch, got {have}")
    if len(agents) and agents.max() >= len(batch.agents):
        raise InvalidArgument("forecasts.agent_positions", f"{agents.max()} is none of the {len(batch.agents)} agents")
    is_step = np.arange(lengths.max(initial=0)) < lengths[:, None]
    survival, per_step = np.zeros(is_step.shape, dtype=np.float32), np.zeros(is_step.shape, dtype=np.int32)
    survival[is_step], per_step[is_step] = batch.survivals, counts
    return Forecasts(
        list(batch.workflow_ids),
        np.array(batch.epochs, dtype=np.uint64),
        np.array(batch.made_at_s, dtype=np.float64),
        np.array(batch.predictabilities, dtype=np.float32),
        np.array(batch.behind_steps, dtype=np.int32),
        np.array(batch.ended, dtype=np.bool_),
        lengths.astype(np.int32),
        survival,
        per_step,
        agents.astype(np.int32),
        np.array(batch.probabilities, dtype=np.float32),
        list(batch.agents),
        list(batch.workloads),
    )
