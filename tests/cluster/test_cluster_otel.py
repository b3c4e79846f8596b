"""Spans into a whole cluster, and the hints that result."""

import asyncio
from contextlib import aclosing

from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.config import load
from pbkv_cluster.integrations.forecast_stream import watch_forecasts
from pbkv_cluster.integrations.kv_hints import HintMaker
from pbkv_cluster.integrations.predictor import find_predictor
from tests.integrations.otel_spans import export, otlp


async def test_spans_become_hints(cluster: LocalCluster) -> None:
    config = load(flags={"cluster.name": cluster.name, "redis.url": cluster.redis_url}).config
    async with find_predictor("", config) as predictor, aclosing(watch_forecasts(predictor, "test")) as forecasts:
        answer = await export(
            cluster.addresses["otel"],
            otlp(1, 1, 2, "chat", parent=9, agent_name="a", conversation_id="spoken"),
            otlp(2, 2, 3, "execute_tool", parent=9),
        )
        assert answer.partial_success.rejected_spans == 1
        async with asyncio.timeout(60):
            async for forecast in forecasts:
                if forecast.workflow == "spoken":
                    break
    assert HintMaker().envelope(forecast).actions[0].payload["session_id"] == "spoken"
