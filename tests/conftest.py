"""For all tests."""

import pytest
from hypothesis import settings

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts import EXPERTS
from pbkv_cluster.predictor_service.predictor.warm_up import warm_up

# How long an example takes says something of the machine, not of the code.
settings.register_profile("untimed", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> None:
    """Compiles once on a machine, in this process, so that no test's deadline has to allow for it."""
    warm_up(PredictorConfig(experts=",".join(EXPERTS.names())))
