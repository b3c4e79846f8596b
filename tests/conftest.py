"""For all tests."""

import pytest
from hypothesis import settings

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts import EXPERTS
from pbkv_cluster.predictor_service.training.warm_up import rehearse

# How long an example takes says something of the machine, not of the code.
settings.register_profile("untimed", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> None:
    """No test's deadline is for compiling, which happens once on a machine: in this process, before others want the same."""
    rehearse(PredictorConfig(experts=",".join(EXPERTS.names())))
