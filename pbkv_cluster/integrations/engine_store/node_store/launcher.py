"""Finds the node's store by name, or starts it."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pbkv_cluster
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.integrations.engine_store.node_store.files import StoreFiles
from pbkv_cluster.integrations.engine_store.settings import CA_VARIABLE, FILES, KEY_VARIABLE, REDIS_VARIABLE, StoreSettings

_PROCESS = "pbkv_cluster.integrations.engine_store.node_store.process"
_START_S = 20.0
_POLL_S = 0.05


async def find_or_start(settings: StoreSettings) -> str:
    """The address of the node's store of this name, host:port; it is started if it does not run.

    Raises:
        PbkvError: it cannot be started, or does not serve in time.
    """
    files = StoreFiles(settings.name)
    deadline = time.monotonic() + _START_S
    is_started = False
    while not (address := files.address()):
        if address is None and not is_started:
            if settings.tls_ca and not settings.tls_certificate:
                raise Unavailable(f"a store {settings.name!r} that engines reach by TLS needs tls_certificate and tls_key")
            _start(settings, files.log)
            is_started = True
        if time.monotonic() > deadline:
            raise Unavailable(f"the node's store {settings.name!r} does not start; see {files.log}")
        await asyncio.sleep(_POLL_S)
    return address


def running_address(name: str) -> str | None:
    """The address of the node's store of a name, host:port; None if it does not run or is still starting."""
    return StoreFiles(name).address() or None


def _start(settings: StoreSettings, log_file: Path) -> None:
    command = [sys.executable, "-m", _PROCESS]
    options = {
        "name": settings.name,
        "arena-bytes": settings.arena_bytes,
        "keep-s": settings.keep_s,
        "host": settings.host,
        "cluster": settings.cluster,
        **{name.replace("_", "-"): getattr(settings, name) for name in FILES if getattr(settings, name)},
    }
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    # The engine may have found this package in another way than by installation.
    package = str(Path(pbkv_cluster.__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH", "")])])
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path, **_secrets(settings)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that it outlives the engine, and what ends the engine's group
        )
    threading.Thread(target=process.wait, name="pbkv-node-store", daemon=True).start()  # takes note of its end


def _secrets(settings: StoreSettings) -> dict[str, str]:
    """What other users could see among the arguments of a command."""
    return {REDIS_VARIABLE: settings.redis_url, KEY_VARIABLE: settings.api_key, CA_VARIABLE: ""}
