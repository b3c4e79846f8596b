"""Jobs that do little, well or badly. By themselves, so that a process for one starts fast."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from pbkv_cluster.predictor_service.training.jobs import TrainingJob


@dataclass(frozen=True)
class Square(TrainingJob[int]):
    number: int

    def run(self) -> int:
        print("this does not mix with the answer")
        return self.number**2


class Faulty(TrainingJob[int]):
    def run(self) -> int:
        raise ZeroDivisionError("a defect in a training")


class Killed(TrainingJob[int]):
    def run(self) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


@dataclass(frozen=True)
class Endless(TrainingJob[int]):
    """Runs until it is killed, and says in a file who it is."""

    started: Path

    def run(self) -> int:
        self.started.with_suffix(".new").write_text(str(os.getpid()))
        self.started.with_suffix(".new").rename(self.started)
        while True:
            signal.pause()
