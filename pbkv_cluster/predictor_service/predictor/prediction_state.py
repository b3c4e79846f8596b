"""What the predictor keeps of one open workflow."""

from collections.abc import Iterator

from pbkv_cluster.predictor_service.workflow.progress import Progress
from pbkv_cluster.predictor_service.workload.moment import Moment
from pbkv_cluster.predictor_service.workload.recognizer import Recognition
from pbkv_cluster.predictor_service.workload.workload_model import WorkloadModel


class PredictionState:
    """Prediction state of one open workflow: its workload, its steps, and the moments whose outcomes are still to come."""

    __slots__ = (
        "_horizon",
        "all_labels",
        "all_moments",
        "latest",
        "latest_at",
        "learnt_to",
        "model",
        "moments",
        "own_labels",
        "progress",
        "recognition",
        "sequence",
    )

    def __init__(self, horizon: int) -> None:
        """Args:
        horizon: steps that a forecast looks ahead.
        """
        self._horizon = horizon
        self.recognition = Recognition()
        self.model: WorkloadModel | None = None  # of the workload; None while that is unknown
        self.progress = Progress()
        self.sequence = -1  # of the latest event applied
        self.latest_at = 0.0  # time of the latest event, by its sender's clock
        self.learnt_to = -1  # sequence of the latest event that was learnt from before a restart, and is only told again
        self.own_labels: dict[str, str] = {}  # labels of agents that had none of their own when first called
        self.moments: list[list[Moment]] = []  # of the latest K steps: each before its output and, once known, after it
        self.latest: Moment | None = None  # the one to forecast
        self.all_moments: list[tuple[int, Moment]] = []  # of the whole workflow, with the number of steps started by then
        self.all_labels: list[str] = []  # of all steps; both are kept only if an expert learns from whole workflows

    @property
    def learnt_from(self) -> int:
        """Sequence of the latest event that was learnt from, before a restart or since; -1: none was."""
        return max(self.learnt_to, self.sequence if self.recognition.settled else -1)

    def change_workload(self) -> None:
        """Takes the model of the workload that `recognition` has now, and forgets what was another workload's."""
        self.model = self.recognition.model
        self.own_labels = {}
        self.restart()

    def restart(self) -> None:
        """Forgets the steps, because some are missing."""
        self.progress.restart()
        self.moments.clear()
        self.latest = None
        self.all_moments = []
        self.all_labels = []

    def add_moment(self, moment: Moment, new_step: bool) -> None:
        """Adds a moment, to be forecast now and learnt from once its outcomes are known."""
        if new_step or not self.moments:
            self.moments.append([])
            del self.moments[: -self._horizon]
        self.moments[-1].append(moment)
        self.latest = moment
        if self.model is not None and self.model.learns_workflows:
            self.all_moments.append((len(self.all_labels), moment))

    def awaiting(self) -> Iterator[tuple[int, Moment]]:
        """The moments that have forecast the next step, each with the step of its forecast that this is, from 0."""
        for step, moments in enumerate(reversed(self.moments)):
            for moment in moments:
                yield step, moment
