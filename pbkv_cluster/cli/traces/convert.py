"""`pbkv trace convert`: traces and logs of others as step traces."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.targets import JsonTarget, check_json_target, check_target, replacing, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.cli.terminal.plain_text import plain
from pbkv_cluster.cli.traces.secret import Secret, ids_of
from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from pbkv_cluster.simulator.conversion.conversion import Converted
    from pbkv_cluster.simulator.recording.ids import Ids
    from pbkv_cluster.simulator.recording.trace_file import TraceFile
    from pbkv_cluster.simulator.traces.problems import RecordProblems
    from pbkv_cluster.simulator.traces.step_traces import TraceWorkflow

_MB = 1_000_000


class Source(StrEnum):
    """Formats that are converted."""

    MOONCAKE = "mooncake"
    AZURE = "azure"
    BURSTGPT = "burstgpt"
    SHAREGPT = "sharegpt"
    ACCESS_LOG = "access-log"
    OTLP = "otlp"
    LANGFUSE = "langfuse"
    PHOENIX = "phoenix"


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="File of another format, plain or .gz.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Step trace to write, .jsonl or .jsonl.gz.")],
    kind: Annotated[Source, typer.Option("--from", help="What IN is.")],
    max_mb: Annotated[float, typer.Option(min=0, help="Megabytes that OUT may have.")] = 1000,
    secret: Secret = None,
    json_target: JsonTarget = None,
) -> None:
    """Convert traces and logs of others, as far as they hold lengths and agents. Says what is missing and what is assumed.

    If records are wrong, says all that is wrong with them, by their place in the file, and writes nothing.
    """
    check_target(out, "OUT")
    check_json_target(json_target, {"OUT": [out], "IN": [source], "--secret": [secret]})
    ids = ids_of(secret)

    from pbkv_cluster.simulator.recording.trace_file import TraceFile
    from pbkv_cluster.simulator.traces.problems import BadRecords

    if out.is_file() and out.stat().st_size:
        raise InvalidArgument("OUT", f"{out} is there already")
    try:
        # A part would look like the whole.
        with replacing(out, "OUT") as path, TraceFile(path, int(max_mb * _MB), reported=(out, "OUT")) as file:
            done, notes = _convert(kind, source, ids, file)
    except BadRecords as error:
        _tell(error.problems, source)
        raise
    told = [f"{out}: {done.workflows:,} workflows, {done.steps:,} steps, {done.prompt_tokens:,} prompt tokens"]
    if done.pseudo_tokens:
        share = 100 * done.pseudo_tokens / done.prompt_tokens
        told.append(f"lengths only: nobody knows the text of {share:.0f} % of the prompt tokens, nor what they share")
    result_console(json_target).print("\n".join([*told, *(f"- {note}" for note in notes)]), highlight=False, soft_wrap=True)
    write_json({**asdict(done), "notes": list(notes)}, json_target)
    if done.is_full:
        typer.echo(f"pbkv: the rest does not fit into {max_mb:g} MB (--max-mb)", err=True)
        raise typer.Exit(1)


def _tell(problems: "RecordProblems", source: Path) -> None:
    """Prints several problems of a file in its order: calls are looked at later than they are read.

    Raises:
        TraceError: there are several.
    """
    from pbkv_cluster.simulator.traces.step_traces import TraceError

    if problems.count == 1:
        return
    for problem in sorted(problems.first, key=lambda text: _place(text.removeprefix(str(source)))):
        typer.echo(plain(problem), err=True)
    shown = f", of which the first {len(problems.first)} are shown" if problems.count > len(problems.first) else ""
    raise TraceError(f"{source}: {problems.count:,} problems{shown}")


def _place(problem: str) -> float:
    """The number of the line or the record that a problem names first; what names none comes last."""
    found = re.match(r", (?:after )?(?:line|record) (\d+)", problem)
    return int(found[1]) if found else math.inf


def _convert(kind: Source, source: Path, ids: "Ids", file: "TraceFile") -> "tuple[Converted, tuple[str, ...]]":
    from pbkv_cluster.simulator.conversion.conversion import convert_calls, convert_workflows
    from pbkv_cluster.simulator.conversion.converters import CONVERTERS, MOONCAKE_NOTES, OTLP_NOTES
    from pbkv_cluster.simulator.traces.problems import RecordProblems

    problems = RecordProblems()
    if kind is Source.MOONCAKE:
        return convert_workflows(_requests(source, problems), file, problems), MOONCAKE_NOTES
    if kind is Source.OTLP:
        from pbkv_cluster.integrations.otel.recording.files import otlp_calls

        return convert_calls(otlp_calls(source, problems), ids, file, problems), OTLP_NOTES
    converter = CONVERTERS[kind.value]
    return convert_calls(converter.read(source, problems), ids, file, problems), converter.notes


def _requests(source: Path, problems: "RecordProblems") -> "Iterator[tuple[TraceWorkflow, float]]":
    from pbkv_cluster.simulator.traces.serving_traces import read_requests

    for each in read_requests(source, problems):
        yield each.workflow, each.starts_at
