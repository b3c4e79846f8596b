"""Another process that is driven line by line: it prints a line when it is ready, and after each read its seconds.

Only the standard library: other environments run this, too.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

BLOCKS, BLOCK_BYTES = 32, 2 << 20
SIZE = BLOCKS * BLOCK_BYTES


def serve_reads(read: Callable[[], float]) -> None:
    """The other process's side: one read for each line, until the input ends."""
    print("ready", flush=True)
    for _ in sys.stdin:
        print(read(), flush=True)


class Child:
    """A process that makes reads when it is told to."""

    def __init__(self, script: str, arguments: Sequence[str] = (), python: str = sys.executable) -> None:
        """Raises RuntimeError if it ends before it is ready."""
        root = Path(__file__).parents[2]
        command = [python, "-m", f"benchmarks.peers.{script}", *arguments]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect("ready")

    def read(self) -> float:
        """One read. Returns its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._expect())

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _expect(self, start: str = "") -> str:
        """The next line that is ours: other libraries print theirs, too."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.strip()
            if text.startswith(start) if start else _is_number(text):
                return text
        raise RuntimeError(f"{self._process.args!r} has ended with status {self._process.wait()}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
