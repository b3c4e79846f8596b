"""The predictor's metrics, read when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.core.metrics.labels import OTHER, BoundedLabels
from pbkv_cluster.predictor_service.access.learner import AccessLearner
from pbkv_cluster.predictor_service.predictor.base import ForecastQuality
from pbkv_cluster.predictor_service.service import PredictorService
from pbkv_cluster.predictor_service.workload.forecast_scores import BINS, ForecastScores

_PROBABILITIES = [f"{(at + 1) / BINS:g}" for at in range(BINS)]


@dataclass(slots=True)
class PredictorFigures:
    """Reads what the parts of a predictor count."""

    service: PredictorService
    learner: AccessLearner
    problems: Callable[[], Sequence[str]]
    labels: BoundedLabels = field(default_factory=lambda: BoundedLabels(_MAX_WORKLOADS))

    async def put(self, figures: Figures) -> None:
        """Adds them to a scrape."""
        service, learner = self.service, self.learner
        figures.put(names.OPEN_WORKFLOWS, service.open_workflows)
        figures.put_each(names.PREDICTOR_EVENTS, {"accepted": service.accepted, "ignored": service.ignored})
        figures.put(names.FORECASTS_MADE, service.forecasts_made)
        figures.put(names.SUBSCRIBERS, service.subscribers)
        figures.put(names.SUBSCRIBERS_BEHIND, service.subscribers_behind)
        logs = {"learnt": learner.learnt, "refused": learner.refused, "dropped": learner.dropped}
        figures.put_each(names.LEARNT_LOGS, logs)
        figures.put(names.PROBLEMS, len(self.problems()))
        quality = service.predictor.quality()
        if quality is not None:
            _put_scores(figures, quality.scores)
            self._put_workloads(figures, quality)

    def _put_workloads(self, figures: Figures, quality: ForecastQuality) -> None:
        for name, (scored, accuracy, predictability) in quality.workloads.items():
            label = self.labels.label(name)
            if label == OTHER:  # no sum says anything of shares
                continue
            figures.put(names.WORKLOAD_PREDICTABILITY, predictability, label)
            if scored:
                figures.put(names.WORKLOAD_ACCURACY, accuracy, label)


_MAX_WORKLOADS = 64  # of the names that a predictor has seen since it started


def _put_scores(figures: Figures, scores: ForecastScores) -> None:
    figures.put(names.FORECASTS_SCORED, scores.scored)
    figures.put(names.FORECASTS_CORRECT, scores.correct)
    figures.put(names.CONFIDENCE, scores.confidence)
    for metric, counts in (
        (names.CALIBRATION_SCORED, scores.scored_by_probability),
        (names.CALIBRATION_CORRECT, scores.correct_by_probability),
    ):
        figures.put_each(metric, dict(zip(_PROBABILITIES, counts, strict=True)))
