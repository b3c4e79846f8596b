"""Starts Ray on one machine without the processes that only larger clusters and Ray's own dashboard need.

They take 150 MiB and two seconds of each start: the autoscaler's monitor, which has no machines to add; the log monitor, which
sends the members' output to a driver that does not want it; and the server of Ray's dashboard, which is off.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

_UNWANTED = {"no_monitor": True, "include_log_monitor": False}


@contextmanager
def lean_start() -> Iterator[None]:
    """Within it, `ray.init` starts none of these processes.

    `ray.init` has no arguments for that, only what it calls. A version of Ray that is made otherwise starts all of them.
    """
    from ray._private import node, parameter

    modules: Any = parameter, node
    params, node_class = modules[0].RayParams, modules[1].Node
    known = inspect.signature(params).parameters
    modules[0].RayParams = partial(params, **{name: value for name, value in _UNWANTED.items() if name in known})
    start_api_server = node_class.start_api_server
    node_class.start_api_server = _no_api_server
    try:
        yield
    finally:
        modules[0].RayParams = params
        node_class.start_api_server = start_api_server


def _no_api_server(node: Any, **_: Any) -> None:
    node._webui_url = None
