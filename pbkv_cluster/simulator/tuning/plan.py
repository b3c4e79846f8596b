"""What a search for settings covers, and how much it may cost."""

from dataclasses import dataclass, field

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.simulator.evaluation.comparison import BOUND
from pbkv_cluster.simulator.evaluation.grid import check_grid
from pbkv_cluster.simulator.tuning.objective import Objective
from pbkv_cluster.simulator.workload.workload import Mix


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """What to search."""

    policies: tuple[str, ...]
    pressures: tuple[float, ...]
    budget: int = 40  # runs of candidates; runs that find capacities, and runs on held-out tasks, are not counted
    objective: Objective = Objective.TOKENS
    hold_out: float = 0.3  # share of the tasks on which the winner is tested
    train: float = 0.0  # share of the tasks on which predictor and access model are trained before all runs
    seed: int = 0
    host_ratio: float = 2.0  # host blocks per GPU block
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: a value is out of range, or given twice.
        """
        check_grid(self.policies, self.pressures, self.host_ratio)
        if BOUND in self.policies:
            raise InvalidArgument("policies", f"{BOUND} knows the future: no cluster can run it")
        if not 0 < self.hold_out < 1:
            raise InvalidArgument("hold_out", f"must be above 0 and below 1, got {self.hold_out}")
        if not 0 <= self.train < 1 - self.hold_out:
            raise InvalidArgument(
                "train", f"must be less than the {1 - self.hold_out:g} that are not held out, got {self.train}"
            )
