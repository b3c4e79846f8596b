"""Keeps rows of policy runs in a file of JSON lines, so that an interrupted benchmark goes on where it stopped.

Each run appends its row. Of two rows of the same run the later one counts, so running it again replaces the first.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pbkv_cluster.simulator.evaluation.experiment import BASELINE, BOUND, Row


@dataclass(frozen=True, slots=True)
class Scene:
    """What rows must have in common to be compared."""

    part: str  # of the tasks
    workflows: int | None  # per run; None: as many as the part has
    concurrency: int
    think_scale: float
    host_ratio: float  # host blocks for each block on the GPU
    workers: int = 1
    machine: str = ""  # that is simulated; "": the default cost model
    host_gb_per_s: float = 0.0  # between GPU and host memory; 0: the machine's


class Key(NamedTuple):
    """One run of a scene."""

    workload: str
    seed: int
    pressure: float
    policy: str
    disturbed: str  # the disturbance as text; "" without one, and always for LRU and the oracle


Rows = dict[Key, Row]


def key_of(row: Row, disturbed: str) -> Key:
    return Key(row.workload, row.seed, row.pressure, row.policy, "" if row.policy in (BASELINE, BOUND) else disturbed)


class RowFile:
    """A file of rows. Several processes may append to it at the same time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mend(self) -> None:
        """Removes a last line that is incomplete, which an interrupted benchmark can leave. Call it before `append`."""
        if self._path.exists():
            content = self._path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self._path, whole)

    def rows(self, scene: Scene) -> Rows:
        """The rows of a scene.

        Raises:
            ValueError: a line is not a row; the message has its number.
        """
        found: Rows = {}
        for number, line in self._lines():
            try:
                entry = json.loads(line)
                own = Scene(**entry["scene"])
                row = Row(**entry["row"])
                disturbed = str(entry["disturbed"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self._path}, line {number}: not a row of this benchmark: {error}") from error
            if own == scene:
                found[key_of(row, disturbed)] = row
        return found

    def sized(self, scene: Scene) -> list[Row]:
        """LRU's rows of the scene, whatever the host ratio: they tell which capacities give which pressure."""
        ratios = {float(json.loads(line)["scene"]["host_ratio"]) for _, line in self._lines()}
        alike = (replace(scene, host_ratio=ratio) for ratio in sorted(ratios))
        return [row for each in alike for row in self.rows(each).values() if row.policy == BASELINE]

    def append(self, scene: Scene, disturbed: str, row: Row) -> None:
        entry: dict[str, Any] = {"scene": asdict(scene), "disturbed": key_of(row, disturbed).disturbed, "row": asdict(row)}
        line = json.dumps(entry).encode() + b"\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, line)  # one write, so that lines of two processes do not mix
        finally:
            os.close(file)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        if self._path.exists():
            with self._path.open("rb") as file:
                yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
