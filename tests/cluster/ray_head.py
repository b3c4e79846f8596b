"""A Ray cluster of one node that a user has started, for tests that join it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

END_S = 60.0


@contextmanager
def ray_head(port: int, environment: Mapping[str, str]) -> Iterator[str]:
    """Its address. It has ended, with all its processes that end in good order, when the context does.

    Args:
        port: that of its head, above 20000.
        environment: what is added to this process's.
    """
    options = ["--head", "--block", "--node-ip-address=127.0.0.2", f"--port={port}", "--include-dashboard=false"]
    with subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "start", *options],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as ray:
        try:
            assert ray.stdout is not None
            said = []
            for line in ray.stdout:
                said.append(line)
                if "Ray runtime started" in line:
                    break
            else:
                pytest.fail(f"Ray has not started: {''.join(said)}")
            yield f"127.0.0.2:{port}"
        finally:
            ray.send_signal(signal.SIGTERM)
            ray.communicate(timeout=END_S)
