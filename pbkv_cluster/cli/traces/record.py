"""`pbkv record`: writes a trace of what happens now."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pbkv_cluster.cli.interrupts import catch_interrupts, on_event_loop, run_until
from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, Endpoint, connected
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, check_target, write_json
from pbkv_cluster.cli.traces.secret import Secret, ids_of
from pbkv_cluster.core.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    from pbkv_cluster.rpc.v1.inspection_pb2 import WatchedEvent
    from pbkv_cluster.simulator.recording.ids import Ids
    from pbkv_cluster.simulator.recording.recorder import Recorder
    from pbkv_cluster.simulator.recording.trace_file import TraceFile

_MB = 1_000_000
_LOOPBACK = "127.0.0.1"
_POLL_S = 0.2
_SPAN_SILENCE_S = 60.0
_CALL_SILENCE_S = 600.0  # whoever reads an answer takes longer than a program
_READ_AHEAD = 64  # calls

T = TypeVar("T")


@connected
def record(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Trace to write, .jsonl or .jsonl.gz.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    otlp: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="PORT",
            help="Instead of a cluster, record spans that applications send to this port (OTLP over HTTP); 0: any free one.",
            show_default=False,
        ),
    ] = None,
    access_log: Annotated[
        Path | None,
        typer.Option(
            "--access-log",
            metavar="FILE|-",
            help="Instead of a cluster, read a log of requests and responses of OpenAI's API; - is standard input.",
        ),
    ] = None,
    silence: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="S",
            help="Seconds without a span after which a trace has ended, or in the time of an access log without a call after "
            "which a workflow has; by default 60 of a span, 600 of a call.",
            show_default=False,
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Seconds after which it ends; by default with Ctrl-C.")
    ] = None,
    workflows: Annotated[int | None, typer.Option(min=1, help="Workflows after which it ends.", show_default=False)] = None,
    max_mb: Annotated[float, typer.Option(min=0, help="Megabytes that the file may have; it ends before them.")] = 1000,
    append: Annotated[bool, typer.Option("--append", help="Go on with a recording that is there already.")] = False,
    with_tokens: Annotated[
        bool, typer.Option("--with-tokens", help="Write the token ids of prompts and replies, too: they tell their text.")
    ] = False,
    secret: Secret = None,
    json_target: JsonTarget = None,
) -> None:
    """Write a trace for `pbkv report`: no text, but keyed hashes, lengths, agents and times.

    It comes from a running cluster, from OpenTelemetry spans (--otlp), or from an access log (--access-log).

    Names are written as clients give them. An agent that no client names is recognised by its system prompt, whose first words
    are its name; it is written under a keyed hash, as is one whose given name has the form of such names (words-1a2b3c).

    Workflows are written when they end; those that are open at the end of the recording, as far as they have got.
    """
    check_target(out, "--out")
    check_json_target(json_target, {"--out": [out], "--access-log": [access_log], "--secret": [secret]})
    if otlp is not None and access_log is not None:
        raise InvalidArgument("--otlp", "cannot be given together with --access-log: record one source at a time")
    if with_tokens and (otlp is not None or access_log is not None):
        raise InvalidArgument("--with-tokens", "only a cluster has the token ids of its prompts")
    ids = ids_of(secret)

    from pbkv_cluster.simulator.recording.recorder import Recorder
    from pbkv_cluster.simulator.recording.trace_file import TraceFile

    with TraceFile(out, int(max_mb * _MB), append) as file:
        recorder = Recorder(file)

        def source() -> Coroutine[Any, Any, None]:
            if otlp is not None:
                return _spans(otlp, recorder, ids, _SPAN_SILENCE_S if silence is None else silence)
            if access_log is not None:
                return _log(access_log, recorder, ids, _CALL_SILENCE_S if silence is None else silence)
            return _cluster(endpoint, recorder, ids, with_tokens)

        has_failed = True
        try:
            on_event_loop(_until_over(recorder, duration, workflows, source))
            has_failed = False
        finally:
            recorder.finish()
            if recorder.written or not has_failed:
                _tell(out, recorder, file, max_mb)
                written = {"workflows": recorder.written, "cut_workflows": recorder.cut, "steps": recorder.steps}
                write_json({**written, "bytes": file.size_bytes, "is_full": recorder.full}, json_target)


def _tell(out: Path, recorder: "Recorder", file: "TraceFile", max_mb: float) -> None:
    """Says what has been recorded."""
    cut = f", {recorder.cut:,} of them cut" if recorder.cut else ""
    typer.echo(f"{out}: {recorder.written:,} workflows{cut}, {recorder.steps:,} steps, {file.size_bytes:,} bytes", err=True)
    if recorder.full:
        typer.echo(f"the recording has ended: {out} may have {max_mb:g} MB (--max-mb)", err=True)


async def _until_over(
    recorder: "Recorder", duration: float | None, workflows: int | None, source: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Runs a source until it ends, or the recording is to end."""
    import asyncio

    interrupted = catch_interrupts()

    async def over() -> None:
        end = None if duration is None else time.monotonic() + duration
        while not interrupted.is_set() and not recorder.full:
            if (end is not None and time.monotonic() >= end) or (workflows is not None and recorder.written >= workflows):
                return
            await asyncio.sleep(_POLL_S)

    await run_until(over(), source())


async def _cluster(endpoint: str, recorder: "Recorder", ids: "Ids", with_tokens: bool) -> None:
    import asyncio

    from pbkv_cluster.client.inspection import InspectionClient
    from pbkv_cluster.core.background import cancel
    from pbkv_cluster.simulator.recording.cluster import ClusterRecording
    from pbkv_cluster.simulator.recording.known_blocks import KnownBlocks

    recording = ClusterRecording(recorder, KnownBlocks(ids), ids)

    async def take(events: "AsyncIterator[WatchedEvent]") -> None:
        async for event in events:
            recording.add(event)

    async with AsyncExitStack() as clients:

        async def watch(address: str) -> asyncio.Task[None]:
            client = await clients.enter_async_context(InspectionClient(address))
            return asyncio.create_task(take(await client.watch(with_tokens)))

        addresses, watches, lost = await _gateways(endpoint), [], []
        for address in addresses:
            try:
                watches.append(await watch(address))
            except Unavailable:
                lost.append(address)
        if not watches:
            watches.append(await watch(endpoint))
        if lost:
            recorded = f"{len(watches)} of {len(addresses)} gateways: cannot reach {', '.join(lost)}"
            typer.echo(f"warning: records {recorded}", err=True)
        typer.echo(f"recording the cluster at {endpoint}; Ctrl-C ends it", err=True)
        try:
            await asyncio.gather(*watches)
        finally:
            await cancel(*watches)


async def _gateways(endpoint: str) -> list[str]:
    """Addresses of the cluster's gateways, if it has several: each tells of the workflows that it holds."""
    from pbkv_cluster.client import AsyncClient

    async with AsyncClient(endpoint) as client:
        status = await client.status()
    return [each.address for each in status.gateways] if len(status.gateways) > 1 else []


async def _spans(port: int, recorder: "Recorder", ids: "Ids", silence_s: float) -> None:
    from pbkv_cluster.core.clock import SystemClock
    from pbkv_cluster.integrations.otel.recording.live import OtlpRecording

    recording = OtlpRecording(recorder, ids, SystemClock(), silence_s)
    address = await recording.serve(_LOOPBACK, port)
    typer.echo(f"recording spans sent to http://{address}/v1/traces; Ctrl-C ends it", err=True)
    try:
        await recording.run()
    finally:
        await recording.stop()


async def _log(path: Path, recorder: "Recorder", ids: "Ids", silence_s: float) -> None:
    """Reads a log call by call, and ends workflows that are silent for long. At its end, all of its workflows have ended."""
    from pbkv_cluster.simulator.conversion.access_log import access_log
    from pbkv_cluster.simulator.conversion.conversion import name_of
    from pbkv_cluster.simulator.recording.conversation import CALIBRATION_CALLS, steps_of

    # A pipe may be written slowly, and its first calls are not to be lost when the recording ends.
    source = Path("/dev/stdin") if str(path) == "-" else path
    calls = steps_of(access_log(source), ids, CALIBRATION_CALLS if source.is_file() else 1)
    now = 0.0  # of the log
    async for call, step in _from_thread(calls):
        workflow = name_of(call.workflow, "workflow")
        recorder.step(workflow, name_of(call.workload, "unnamed"), step)
        if call.tool:
            recorder.tool(workflow, name_of(call.tool, "tool"))
        if call.started_s is not None:
            now = max(now, call.started_s)
            recorder.end_silent(now - silence_s)
    recorder.end_all()


async def _from_thread(values: "Iterator[T]") -> "AsyncIterator[T]":
    """The values of an iterator that blocks. Its thread is left behind if nobody wants more of them."""
    import asyncio

    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[T | None, BaseException | None]](_READ_AHEAD)

    def read() -> None:
        error: BaseException | None = None
        try:
            for value in values:
                if loop.is_closed():
                    return
                asyncio.run_coroutine_threadsafe(queue.put((value, None)), loop).result()
        except Exception as raised:  # noqa: BLE001  # raised again by who reads the queue
            error = raised
        if not loop.is_closed():  # else whoever would have been told is no longer there
            asyncio.run_coroutine_threadsafe(queue.put((None, error)), loop)

    threading.Thread(target=read, name="access log", daemon=True).start()
    while True:
        value, error = await queue.get()
        if error is not None:
            raise error
        if value is None:
            return
        yield value
