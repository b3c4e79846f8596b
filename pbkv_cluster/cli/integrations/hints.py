"""`pbkv hints`: prints the predictor's forecasts as KV hints."""

import sys
from contextlib import aclosing
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.interrupts import on_event_loop
from pbkv_cluster.cli.options import (
    Assignments,
    ConfigFile,
    PredictorAddress,
    RedisUrl,
    check_predictor,
    connect_as_member,
    connected,
    load_settings,
)

if TYPE_CHECKING:
    from pbkv_cluster.core.config import Config
    from pbkv_cluster.integrations.kv_hints import KvHintsEnvelope


class Format(StrEnum):
    """Encoding of envelopes."""

    JSON = "json"
    MSGPACK = "msgpack"


@connected
def hints(
    config: ConfigFile = None,
    assignments: Assignments = None,
    predictor: PredictorAddress = "",
    redis: RedisUrl = None,
    workflow: Annotated[str, typer.Option(metavar="ID", help="Only hints of this workflow; by default of all.")] = "",
    encoding: Annotated[
        Format, typer.Option("--format", help="json: one envelope per line; msgpack: envelopes without separators.")
    ] = Format.JSON,
    prefetch_probability: Annotated[
        float, typer.Option(help="Least probability of the next agent for a prefetch.", min=0.0, max=1.0)
    ] = 0.5,
    limit: Annotated[int, typer.Option(help="Stop after this many envelopes; 0: never.", min=0)] = 0,
) -> None:
    """Print KV hints of what is likely to be reused, whenever a forecast changes."""
    settings = load_settings(config, assignments, {"redis.url": redis})
    check_predictor(predictor, settings.config.redis.url)
    connect_as_member(settings.config.security)
    on_event_loop(_stream(settings.config, predictor, workflow, encoding, prefetch_probability, limit))


async def _stream(config: "Config", address: str, workflow: str, encoding: Format, probability: float, limit: int) -> None:
    from pbkv_cluster.integrations.forecast_stream import watch_forecasts
    from pbkv_cluster.integrations.kv_hints import HintMaker
    from pbkv_cluster.integrations.predictor import find_predictor

    maker = HintMaker(config.cache.gamma, config.cache.forecast_half_life_s, probability)
    printed = 0
    async with find_predictor(address, config) as predictor, aclosing(watch_forecasts(predictor, "pbkv hints")) as forecasts:
        async for forecast in forecasts:
            if workflow in ("", forecast.workflow):
                _write(maker.envelope(forecast), encoding)
                printed += 1
                if printed == limit:
                    return


def _write(envelope: "KvHintsEnvelope", encoding: Format) -> None:
    from pbkv_cluster.integrations.kv_hints import to_json, to_msgpack

    if encoding is Format.JSON:
        sys.stdout.write(to_json(envelope) + "\n")
        sys.stdout.flush()
    else:
        sys.stdout.buffer.write(to_msgpack(envelope))
        sys.stdout.buffer.flush()
