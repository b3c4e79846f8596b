"""`pbkv trace check`: everything that is wrong with a trace."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console

_WRONG = 2  # exit code, as for any bad input


def check(
    file: Annotated[Path, typer.Argument(metavar="TRACE", help="A step trace, coding-agent sessions or chat requests.")],
    limit: Annotated[int, typer.Option(min=1, help="Problems that are printed at most; all are counted.")] = 200,
    json_target: JsonTarget = None,
) -> None:
    """Say all that is wrong with a trace at once, by line and field. The exit code is 2 if anything is."""
    from pbkv_cluster.simulator.traces.check import TraceCheck

    check_json_target(json_target, {"TRACE": [file]})
    checked = TraceCheck(file)
    problems = checked.problems()
    shown = list(islice(problems, limit))
    console = result_console(json_target)
    for problem in shown:
        console.print(str(problem), highlight=False, markup=False, soft_wrap=True)
    more = sum(1 for _ in problems)
    if more:
        console.print(f"and {more:,} more problems", highlight=False)
    for name, times in checked.unknown.items():
        said = f"{name}: this format has no such field; it is ignored ({times:,} times)"
        console.print(said, style="dim", highlight=False, markup=False, soft_wrap=True)
    count = len(shown) + more
    console.print(
        f"{file}: {checked.lines:,} lines, {len(checked.workflows):,} workflows, {checked.steps:,} steps: "
        + (f"{count:,} {'problem' if count == 1 else 'problems'}" if count else "nothing is wrong"),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    write_json(
        {
            "lines": checked.lines,
            "workflows": len(checked.workflows),
            "steps": checked.steps,
            "problems": count,
            "first_problems": [{"line": each.line or None, "problem": each.text} for each in shown],
            "unknown_fields": dict(checked.unknown),
        },
        json_target,
    )
    if count:
        raise typer.Exit(_WRONG)
