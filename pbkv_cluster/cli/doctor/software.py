"""Versions of what is installed, extras that are missing, and block keys that must be the same everywhere."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata

from pbkv_cluster import __version__
from pbkv_cluster.cli.doctor.finding import Finding, error, ok, warning
from pbkv_cluster.cli.extras import EXTRAS, PURPOSES, is_installed
from pbkv_cluster.core.locations.installation import DISTRIBUTION, install_command

_VERSIONS = ("torch", "ray", "transformers", "grpcio", "redis")
_PYTHON = (3, 11), (3, 12)  # that are tested: the lowest and the highest
# Of the last of four blocks with the tokens from 0 to 63, in the namespace below.
_KEY = "6afa9d6be1371acc0b83ced130ecce5a"


def check_software() -> Iterator[Finding]:
    """Python, versions, extras and block keys."""
    yield _python()
    yield from _requirements()
    yield from _extras()
    yield check_keys()


def _python() -> Finding:
    running = platform.python_version()
    low, high = _PYTHON
    if sys.version_info[:2] < low:
        return error("python", f"Python {running}", f"install Python {low[0]}.{low[1]} or {high[0]}.{high[1]}")
    if sys.version_info[:2] > high:
        return warning("python", f"Python {running} is not tested", f"use Python {high[0]}.{high[1]}")
    return ok("python", f"Python {running}, pbkv {__version__}")


def _requirements() -> Iterator[Finding]:
    """Versions that are installed against those that the distribution asks for."""
    versions = [f"{name} {_version(name)}" for name in _VERSIONS if _version(name)]
    try:
        texts = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield warning("versions", f"{DISTRIBUTION} is not installed as a package", "pip install -e . in its folder")
        return
    old = []
    for text in texts:
        wanted = re.match(r"([\w.-]+)(?:\[[^\]]*\])?>=([\d.]+)", text)
        if wanted and (installed := _version(wanted[1])) and _numbers(installed) < _numbers(wanted[2]):
            old.append((wanted[1], installed, wanted[2]))
    for name, installed, least in sorted(set(old)):
        yield error("versions", f"{name} {installed} is older than {least}", f"pip install '{name}>={least}'")
    if not old:
        yield ok("versions", ", ".join(versions) or "the client's packages only")


def _extras() -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if not is_installed(package)]
        if missing:
            what = f"without extra `{extra}` there is no {PURPOSES[extra]} (missing: {', '.join(missing)})"
            yield warning("extras", what, install_command(extra))
    if all(is_installed(package) for packages in EXTRAS.values() for package in packages):
        yield ok("extras", f"installed: {', '.join(EXTRAS)}")


def check_keys(known: str = _KEY) -> Finding:
    """Whether this process computes block keys as every other one does."""
    from pbkv_cluster.core.blocks import Namespace, block_keys
    from pbkv_cluster.core.tokens import pack

    key = block_keys(Namespace("doctor", "1", "float32", "check"), pack(list(range(64))))[-1].hex()
    if key == known:
        seed = os.environ.get("PYTHONHASHSEED", "random")
        return ok("block keys", f"as in every process (PYTHONHASHSEED, here {seed}, has no influence)")
    return error(
        "block keys",
        f"the key of a known block is {key}, not {known}: nothing that others have cached would be found",
        "install the same version of pbkv-cluster on all machines",
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))
