"""Forecasts: many in one message, in columns."""

import numpy as np

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.forecasts.batch import Forecasts
from pbkv_cluster.rpc.v1 import predictor_pb2


def forecasts_to_wire(forecasts: Forecasts, snapshot: bool = False) -> predictor_pb2.ForecastBatch:
    """One batch; each agent's name travels once, if at all."""
    told = forecasts.compact()
    forecast = np.arange(told.survival.shape[1]) < told.lengths[:, None]  # which of the K steps
    return predictor_pb2.ForecastBatch(
        agents=told.names,
        snapshot=snapshot,
        workflow_ids=told.workflows,
        epochs=told.epochs.tolist(),
        made_at_s=told.made_at.tolist(),
        predictabilities=told.predictability.tolist(),
        behind_steps=told.behind.tolist(),
        ended=told.ended.tolist(),
        step_counts=told.lengths.tolist(),
        survivals=told.survival[forecast].tolist(),
        agent_counts=told.named[forecast].tolist(),
        agent_positions=told.agents.tolist(),
        probabilities=told.chances.tolist(),
    )


def forecasts_from_wire(batch: predictor_pb2.ForecastBatch) -> Forecasts:
    """Raises:
    InvalidArgument: columns of the batch do not fit together, or refer to an agent that it does not name.
    """
    number = len(batch.workflow_ids)
    columns = (batch.step_counts, batch.agent_counts, batch.agent_positions)
    lengths, counts, agents = (np.array(column, dtype=np.int64) for column in columns)  # which holds all of uint32
    for name, want in (
        ("epochs", number),
        ("made_at_s", number),
        ("predictabilities", number),
        ("behind_steps", number),
        ("ended", number),
        ("step_counts", number),
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
    forecast = np.arange(lengths.max(initial=0)) < lengths[:, None]
    survival, named = np.zeros(forecast.shape, dtype=np.float32), np.zeros(forecast.shape, dtype=np.int32)
    survival[forecast], named[forecast] = batch.survivals, counts
    return Forecasts(
        list(batch.workflow_ids),
        np.array(batch.epochs, dtype=np.uint64),
        np.array(batch.made_at_s, dtype=np.float64),
        np.array(batch.predictabilities, dtype=np.float32),
        np.array(batch.behind_steps, dtype=np.int32),
        np.array(batch.ended, dtype=np.bool_),
        lengths.astype(np.int32),
        survival,
        named,
        agents.astype(np.int32),
        np.array(batch.probabilities, dtype=np.float32),
        list(batch.agents),
    )
