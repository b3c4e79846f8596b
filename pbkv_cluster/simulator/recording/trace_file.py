"""The file of a recording: valid at any moment, and bounded."""

import gzip
import os
import stat
from pathlib import Path
from typing import Self

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.traces.step_traces import read_workflows


class TraceFile:
    """A step trace that workflows are appended to. Each write is a whole gzip member, if the name ends in `.gz`."""

    def __init__(self, path: Path, max_bytes: int, append: bool = False, reported: tuple[Path, str] | None = None) -> None:
        """Args:
        path: of the file.
        max_bytes: that it may have.
        append: to a recording that is there already.
        reported: path and option that errors name; by default this one, and --out.

        Raises:
            InvalidArgument: the file cannot be written, or is there already.
            TraceError: what is to be appended to is no step trace, or is damaged.
        """
        self._reported, self._option = reported or (path, "--out")
        self.size_bytes = path.stat().st_size if path.is_file() else 0
        self.workflows: set[str] = set()  # in the file
        if self.size_bytes:
            if not append:
                raise InvalidArgument(self._option, f"{self._reported} is there already; give --append to go on with it")
            self.workflows.update(each.id for each in read_workflows(path))
        self._max_bytes = max_bytes
        self._zipped = path.suffix == ".gz"
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._failure(error) from error

    def write(self, workflow: str, lines: bytes) -> bool:
        """Appends the lines of a workflow; returns False, and writes nothing, if they do not fit.

        Raises:
            InvalidArgument: the disk is full, or fails; nothing of the workflow is in it, except in a pipe.
        """
        data = gzip.compress(lines) if self._zipped else lines
        if self.size_bytes + len(data) > self._max_bytes:
            return False
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as error:
            if stat.S_ISREG(os.fstat(self._file).st_mode):
                os.ftruncate(self._file, self.size_bytes)
            raise self._failure(error) from error
        self.size_bytes += len(data)
        self.workflows.add(workflow)
        return True

    def _failure(self, error: OSError) -> InvalidArgument:
        return InvalidArgument(self._option, f"cannot write {self._reported}: {error.strerror}")

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
