"""`pbkv record`: writes a trace of what happens now."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, Endpoint
from pbkv_cluster.cli.output import check_target
from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from pbkv_cluster.simulator.recording.ids import Ids
    from pbkv_cluster.simulator.recording.recorder import Recorder

_MB = 1_000_000
_POLL_S = 0.2
_SECRET_MAX = 64


def record(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Trace to write, .jsonl or .jsonl.gz.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    duration: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Seconds after which it ends; by default with Ctrl-C.")
    ] = None,
    workflows: Annotated[int | None, typer.Option(min=1, help="Workflows after which it ends.", show_default=False)] = None,
    max_mb: Annotated[float, typer.Option(min=0, help="Megabytes that the file may have; it ends before them.")] = 1000,
    append: Annotated[bool, typer.Option("--append", help="Go on with a recording that is there already.")] = False,
    with_tokens: Annotated[
        bool, typer.Option("--with-tokens", help="Write the token ids of prompts and replies, too: they tell their text.")
    ] = False,
    secret: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Key of the ids: equal texts have equal ids in all recordings under it. By default new."
        ),
    ] = None,
) -> None:
    """Write a trace of a running cluster for `pbkv report`: no text, but keyed hashes, lengths, agents and times.

    Workflows are written when they end; those that are open at the end of the recording, as far as they have got.
    """
    check_target(out, "--out")
    ids = _ids(secret)

    from pbkv_cluster.simulator.recording.recorder import Recorder
    from pbkv_cluster.simulator.recording.trace_file import TraceFile

    with TraceFile(out, int(max_mb * _MB), append) as file:
        recorder = Recorder(file)
        try:
            asyncio.run(_until_over(recorder, duration, workflows, lambda: _cluster(endpoint, recorder, ids, with_tokens)))
        finally:
            recorder.finish()
            cut = f", {recorder.cut:,} of them cut" if recorder.cut else ""
            typer.echo(
                f"{out}: {recorder.written:,} workflows{cut}, {recorder.steps:,} steps, {file.size_bytes:,} bytes", err=True
            )
            if recorder.full:
                typer.echo(f"the recording has ended: {out} may have {max_mb:g} MB (--max-mb)", err=True)


async def _until_over(
    recorder: "Recorder", duration: float | None, workflows: int | None, source: Callable[[], Awaitable[None]]
) -> None:
    """Runs a source until it ends, or the recording is to end."""
    from pbkv_cluster.core.background import cancel

    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)

    async def over() -> None:
        end = None if duration is None else time.monotonic() + duration
        while not interrupted.is_set() and not recorder.full:
            if (end is not None and time.monotonic() >= end) or (workflows is not None and recorder.written >= workflows):
                return
            await asyncio.sleep(_POLL_S)

    running = asyncio.ensure_future(source())
    ending = asyncio.create_task(over())
    done, _ = await asyncio.wait([running, ending], return_when=asyncio.FIRST_COMPLETED)
    await cancel(running, ending)
    for task in done:
        task.result()


async def _cluster(endpoint: str, recorder: "Recorder", ids: "Ids", with_tokens: bool) -> None:
    from pbkv_cluster.client.inspection import InspectionClient
    from pbkv_cluster.simulator.recording.cluster import ClusterRecording
    from pbkv_cluster.simulator.recording.known_blocks import KnownBlocks

    recording = ClusterRecording(recorder, KnownBlocks(ids))
    async with InspectionClient(endpoint) as client:
        events = await client.watch(with_tokens)
        typer.echo(f"recording the cluster at {endpoint}; Ctrl-C ends it", err=True)
        async for event in events:
            recording.add(event)


def _ids(path: Path | None) -> "Ids":
    from pbkv_cluster.simulator.recording.ids import keyed_ids

    if path is None:
        return keyed_ids()
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise InvalidArgument("--secret", f"cannot read {path}: {error.strerror}") from error
    if not 16 <= len(key) <= _SECRET_MAX:
        raise InvalidArgument("--secret", f"must have 16 to {_SECRET_MAX} bytes, {path} has {len(key)}")
    return keyed_ids(key)
