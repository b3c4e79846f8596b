"""Which versions of other engines the plug-ins were tested with. Their plug-in points are experimental and change."""

from __future__ import annotations

import re

from pbkv_cluster.core.errors import InvalidArgument

TESTED = {"vllm": ("0.32", "0.33"), "sglang": ("0.5.23",), "lmcache": ("0.5.6",)}
"""Versions, or beginnings of them."""


def check_version(engine: str, found: str, any_version: bool) -> None:
    """Refuses an engine whose version was not tested.

    Args:
        engine: a key of `TESTED`.
        found: its version.
        any_version: accept all; setting `plugins.any_version`.

    Raises:
        InvalidArgument: it was not tested.
    """
    tested = TESTED[engine]
    if any_version or any(re.match(rf"{re.escape(version)}(\D|$)", found) for version in tested):
        return
    problem = f"version {found} was not tested, only {', '.join(tested)}"
    raise InvalidArgument(engine, f"{problem}; PBKV_PLUGINS_ANY_VERSION=true in its environment runs it anyway")
