"""The key of the ids in a trace, as commands take it that write one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from pbkv_cluster.simulator.recording.ids import Ids

_SECRET_MIN, _SECRET_MAX = 16, 64

Secret = Annotated[
    Path | None,
    typer.Option("--secret", metavar="FILE", help="Key of the ids, the same in all traces under it; by default a new one."),
]


def ids_of(path: Path | None) -> "Ids":
    """The ids under the key in a file, or under a new one.

    Raises:
        InvalidArgument: the file cannot be read, or has no key.
    """
    from pbkv_cluster.simulator.recording.ids import keyed_ids

    if path is None:
        return keyed_ids()
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise InvalidArgument("--secret", f"cannot read {path}: {error.strerror}") from error
    if not _SECRET_MIN <= len(key) <= _SECRET_MAX:
        raise InvalidArgument("--secret", f"must have {_SECRET_MIN} to {_SECRET_MAX} bytes, {path} has {len(key)}")
    return keyed_ids(key)
