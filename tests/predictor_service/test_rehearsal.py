"""What is compiled before a predictor serves."""

import importlib
import pkgutil

from numba.core.dispatcher import Dispatcher

from pbkv_cluster import predictor_service
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.rehearsal import rehearse


def test_all_that_a_predictor_calls_is_compiled_by_then() -> None:
    rehearse(PredictorConfig())
    compiled, inner = {}, set[str]()
    for module in pkgutil.walk_packages(predictor_service.__path__, f"{predictor_service.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, Dispatcher) and value.__module__ == module.name:
                compiled[f"{module.name}.{name}"] = bool(value.signatures)
                inner |= {f"{module.name}.{called}" for called in value.py_func.__code__.co_names}
    called_from_outside = compiled.keys() - inner
    assert len(called_from_outside) > 8
    assert {name for name in called_from_outside if not compiled[name]} == set()
