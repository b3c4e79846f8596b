"""The files that commands write: checked before any work is done, and replaced as a whole."""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from pbkv_cluster.core.errors import InvalidArgument

JsonTarget = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the result as JSON; - is standard output.")
]

OtherFiles = Mapping[str, Iterable[Path | None]]
"""Files by the option or the argument that names them; None is not given."""


def check_json_target(target: str | None, others: OtherFiles = MappingProxyType({})) -> None:
    """Checks the target of --json before any work is done.

    Args:
        target: of --json.
        others: files that the command reads or writes as well.

    Raises:
        InvalidArgument: the target is a folder, or its folder does not exist, or it is one of the others.
    """
    if target not in (None, "-"):
        check_target(Path(str(target)), "--json", others)


def check_target(path: Path, option: str, others: OtherFiles = MappingProxyType({})) -> None:
    """Checks the target of any option that names a file to write, as `check_json_target` does."""
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidArgument(option, f"cannot write {path}: it is a folder, or its folder does not exist")
    if path.exists() and not path.is_file():  # a pipe or a device takes several
        return
    for name, files in others.items():
        if any(file is not None and os.path.realpath(file) == os.path.realpath(path) for file in files):
            raise InvalidArgument(option, f"{path} is the file of {name}: give another")


def write_json(value: Any, target: str | None) -> None:
    """Writes `value` as JSON to the target of --json; does nothing without a target.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(value, indent=2)
    if target == "-":
        typer.echo(text)
        return
    write_atomically(text + "\n", Path(target), "--json")


def write_atomically(text: str, path: Path, option: str) -> None:
    """Writes a file as `replacing` does.

    Raises:
        InvalidArgument: the file cannot be written; names `option`.
    """
    with replacing(path, option) as written:
        try:
            written.write_text(text)
        except OSError as error:
            raise InvalidArgument(option, f"cannot write {path}: {error.strerror}") from error


@contextmanager
def replacing(path: Path, option: str) -> Iterator[Path]:
    """The file to write in place of `path`, which takes its place at the end, so that that has either its old or its new
    content, whatever happens. A link stays one; a pipe or a device cannot be replaced, and is written itself.

    Raises:
        InvalidArgument: the file cannot be replaced; names `option`.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    temporary.unlink(missing_ok=True)  # of a process that was killed
    try:
        yield temporary
        try:
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            temporary.replace(target)
        except OSError as error:
            raise InvalidArgument(option, f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
