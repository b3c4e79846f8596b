"""Our policy as vLLM loads it, but in the time of a replay, and learning before it answers, so that runs can be repeated."""

import time
from collections.abc import Iterator

from pbkv_cluster.core.clock import Clock, ManualClock
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.workflow.access_log import AccessLog
from pbkv_cluster.integrations.vllm_policy.learning import Knowledge, LocalLearner
from pbkv_cluster.integrations.vllm_policy.policy import PbkvCachePolicy
from pbkv_cluster.predictor_service.access.prior import load_prior
from pbkv_cluster.reuse.model.access_model import AccessUpdate


class TimedPolicy(PbkvCachePolicy):
    """The replay moves `time`, which it sets anew for each run."""

    time = ManualClock()
    learner: "TimedLearner"  # of the latest run

    def _clock(self) -> Clock:
        return self.time

    def _knowledge(self, config: Config) -> Knowledge:
        TimedPolicy.learner = TimedLearner(load_prior(config.predictor.prior))
        return self.learner


class TimedLearner(LocalLearner):
    """Counts the time of learning, which a thread of its own has in vLLM."""

    seconds = 0.0

    def report(self, ended: AccessLog) -> None:
        began = time.thread_time()
        super().report(ended)
        self.seconds += time.thread_time() - began

    def updates(self) -> Iterator[AccessUpdate]:
        began = time.thread_time()
        learnt = list(super().updates())
        self.seconds += time.thread_time() - began
        return iter(learnt)
