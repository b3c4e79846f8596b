"""Headless Chromium: one that is installed, or the one that `make test-dashboard` has unpacked."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

UNPACKED = Path(__file__).resolve().parents[2] / "build" / "chromium"
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update")


def find() -> Path | None:
    """The program; None: there is none."""
    unpacked = UNPACKED / "usr/lib/chromium/chromium"
    if unpacked.exists():
        return unpacked
    installed = shutil.which("chromium") or shutil.which("google-chrome")
    return Path(installed) if installed else None


@contextmanager
def browser() -> Iterator[Browser]:
    """Runs it until the context is left.

    Raises:
        FileNotFoundError: there is none.
    """
    program = find()
    if program is None:
        raise FileNotFoundError(f"there is no Chromium, neither installed nor in {UNPACKED}")
    libraries = [str(path) for path in UNPACKED.glob("usr/lib/*-linux-gnu")]
    libraries += [str(path) for path in UNPACKED.glob("usr/lib/*-linux-gnu/pulseaudio")]
    environment = (
        {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)} if program.is_relative_to(UNPACKED) else dict(os.environ)
    )
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=list(_FLAGS), env={**environment})
        try:
            yield running
        finally:
            running.close()
