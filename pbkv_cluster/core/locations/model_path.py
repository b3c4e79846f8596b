"""What `model.path` may name, checked without loading anything: a local checkpoint, or an id on the hub."""

import json
import re
from pathlib import Path

from pbkv_cluster.core.errors import StartupError

_CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "*.bin")
_MAX_CONFIG_BYTES = 16 << 20
_HUB_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")


def local_model(path: str) -> Path | None:
    """The directory of a local checkpoint; None if `path` is an id on the hub, which only the hub can check.

    Raises:
        StartupError: `path` is neither, or the directory holds no checkpoint; names model.path.
    """
    directory = Path(path)
    if directory.is_dir():
        _check_checkpoint(directory)
        return directory
    if directory.exists():
        raise StartupError(f"model.path: {path!r} is a file; name the directory of a checkpoint, with its {_CONFIG}")
    if path.startswith("~"):
        raise StartupError(f"model.path: {path!r} is no directory; ~ stands for nothing here, write the whole path")
    if path.startswith((".", "/")) or path.count("/") > 1:
        raise StartupError(f"model.path: there is no directory {path!r}")
    if path.count("/") != 1 or not all(map(_is_hub_name, path.split("/"))):
        raise StartupError(f"model.path: {path!r} is neither a directory nor a hub id, OWNER/NAME")
    return None


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and ".." not in name and "--" not in name


def _check_checkpoint(directory: Path) -> None:
    config = directory / _CONFIG
    try:
        with config.open("rb") as file:
            text = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise StartupError(f"model.path: {str(directory)!r} holds no checkpoint: {_CONFIG}: {error.strerror}") from None
    try:
        content = json.loads(text) if len(text) <= _MAX_CONFIG_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise StartupError(f"model.path: {str(config)!r} is not a JSON object")
    if not any(next(directory.glob(pattern), None) for pattern in _WEIGHTS):
        raise StartupError(f"model.path: {str(directory)!r} holds no weights ({' or '.join(_WEIGHTS)})")
