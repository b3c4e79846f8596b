"""One moment of a workflow, as the experts read it."""

from typing import Any

from pbkv_cluster.predictor_service.experts.mixture import Phase


class Moment:
    """A situation that is forecast, kept until the outcomes to learn from are known."""

    __slots__ = ("features", "outcomes", "phase")

    def __init__(self, features: tuple[Any, ...], phase: Phase) -> None:
        self.features = features  # one entry for each expert
        self.phase = phase
        self.outcomes: list[str] = []  # labels of the steps that have followed, END after the last step
