"""What is wrong with the records of a file: all of it, where somebody keeps account; else the first ends the reading."""

from collections.abc import Iterator
from contextlib import contextmanager

from pbkv_cluster.simulator.traces.step_traces import TraceError

KEPT = 200


class RecordProblems:
    """The first problems, and how many there are."""

    def __init__(self) -> None:
        self.first: list[str] = []  # at most `KEPT`
        self.count = 0

    def add(self, error: TraceError) -> None:
        self.count += 1
        if len(self.first) < KEPT:
            self.first.append(str(error))

    def check(self) -> None:
        """Raises:
        BadRecords: there is a problem.
        """
        if self.count:
            raise BadRecords(self)


class BadRecords(TraceError):
    """Records of a file cannot be used. The message is the first problem."""

    def __init__(self, problems: RecordProblems) -> None:
        super().__init__(problems.first[0])
        self.problems = problems


@contextmanager
def noted(problems: RecordProblems | None) -> Iterator[None]:
    """Around what is done with one record: what is wrong with it is noted, and the next one comes.

    Raises:
        TraceError: the record is wrong, and `problems` is None.
    """
    try:
        yield
    except TraceError as error:
        if problems is None:
            raise
        problems.add(error)
