"""How forecasts of the next step have done: how often the likeliest outcome came, and how probable it was said to be.

A forecast is scored when its outcome is about to be learnt from, by the experts and weights of that moment, which have not seen
the outcome. So the score costs nothing while events are taken and forecasts made.
"""

import numpy as np
import numpy.typing as npt

from pbkv_cluster.core.ewma import Ewma
from pbkv_cluster.predictor_service.experts import Floats

BINS = 10
_WEIGHT = 0.01  # of the latest forecast in a workload's accuracy


class ForecastScores:
    """Counts since the start. `confidence` is the sum of the probabilities of the likeliest outcomes."""

    def __init__(self) -> None:
        self.scored = 0
        self.correct = 0
        self.confidence = 0.0
        self.scored_by_probability = [0] * BINS  # from 0 to 0.1, to 0.2 and so on
        self.correct_by_probability = [0] * BINS

    def add(self, forecasts: Floats, outcomes: npt.NDArray[np.intp]) -> list[bool]:
        """Scores forecasts; where no expert knew anything there is none.

        Args:
            forecasts: probabilities [moments, columns].
            outcomes: the columns that followed, [moments]; -1: one that was not known.

        Returns:
            Of each scored forecast, whether its likeliest outcome came.
        """
        likeliest = forecasts.argmax(axis=1)
        probabilities = forecasts[np.arange(len(forecasts)), likeliest]
        known = probabilities > 0.0
        hits: list[bool] = (likeliest == outcomes)[known].tolist()
        for probability, hit in zip(probabilities[known].tolist(), hits, strict=True):
            at = min(int(probability * BINS), BINS - 1)
            self.scored_by_probability[at] += 1
            self.correct_by_probability[at] += hit
            self.confidence += probability
        self.scored += len(hits)
        self.correct += sum(hits)
        return hits


class RecentAccuracy:
    """Share of one workload's latest forecasts whose likeliest outcome came; a hundred forecasts weigh about two thirds."""

    def __init__(self) -> None:
        self._share = Ewma(_WEIGHT, initial=0.0)
        self.scored = 0

    @property
    def value(self) -> float:
        """From 0 to 1; 0 before the first forecast."""
        return self._share.value

    def add(self, hits: list[bool]) -> None:
        for hit in hits:
            self._share.add(float(hit))
        self.scored += len(hits)
