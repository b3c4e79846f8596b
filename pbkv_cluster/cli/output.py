"""How results are shown: rates with their denominators, and JSON to a file or to standard output."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

    from pbkv_cluster.simulator.spread import Spread

JsonTarget = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the result as JSON; - is standard output.")
]


def check_json_target(target: str | None) -> None:
    """Refuses a target that could not be written in the end, before the work is done.

    Raises:
        InvalidArgument: it is a folder, or its folder does not exist.
    """
    if target not in (None, "-"):
        check_target(Path(str(target)), "--json")


def check_target(path: Path, option: str) -> None:
    """The same for any option that names a file to be written."""
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidArgument(option, f"cannot write {path}: it is a folder, or its folder does not exist")


def write_json(value: Any, target: str | None) -> None:
    """Writes `value` where --json asked for it, if it did.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(value, indent=2)
    if target == "-":
        typer.echo(text)
        return
    write_whole(text + "\n", Path(target), "--json")


def write_whole(text: str, path: Path, option: str) -> None:
    """Writes a file at once: whatever happens, there is the old one or all of the new.

    Raises:
        InvalidArgument: it cannot be written; names `option`.
    """
    if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
        _write(text, path, path, option)
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(text, beside, path, option)
        try:
            beside.replace(path)
        except OSError as error:
            raise InvalidArgument(option, f"cannot write {path}: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)


def _write(text: str, path: Path, named: Path, option: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise InvalidArgument(option, f"cannot write {named}: {error.strerror}") from error


def console_beside(json_target: str | None) -> "Console":
    """A console that leaves standard output alone where JSON goes there."""
    from rich.console import Console

    return Console(stderr=json_target == "-")


def explain_missed(cells: Iterable[tuple[str, float]]) -> None:
    """Says on standard error why some workloads do not have the pressures that were asked for."""
    for workload, pressure in sorted(set(cells)):
        typer.echo(
            f"pbkv: {workload}: no capacity gives LRU {pressure:g} of the hits; the nearest was taken. A pool has to hold the "
            "longest step: more --concurrency makes smaller shares possible.",
            err=True,
        )


def share(tokens: int, of: int) -> str:
    """Some tokens as a share of `of` tokens: `41.2 % of 1,000`."""
    return f"{100 * tokens / of:.1f} % of {of:,}" if of else "none yet"


def percent(rate: float | None) -> str:
    """A rate in percent; a dash where there is none."""
    return "-" if rate is None else f"{100 * rate:.1f} %"


def seconds(spread: "Spread | None", which: str) -> str:
    """One number of a spread, in a unit that suits it."""
    if spread is None:
        return "-"
    value: float = getattr(spread, which)
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"
