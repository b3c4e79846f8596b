"""The warm-up compiles everything: in a process of its own, where no other test has called anything."""

import subprocess
import sys

WARM_UP = """
import importlib, pkgutil
from numba.core.dispatcher import Dispatcher
from pbkv_cluster import predictor_service
from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.experts import EXPERTS
from pbkv_cluster.predictor_service.predictor.warm_up import warm_up

warm_up(PredictorConfig(experts=",".join(EXPERTS.names())))
compiled, inner = {}, set()
for module in pkgutil.walk_packages(predictor_service.__path__, f"{predictor_service.__name__}."):
    for name, value in vars(importlib.import_module(module.name)).items():
        if isinstance(value, Dispatcher) and value.__module__ == module.name:
            compiled[f"{module.name}.{name}"] = bool(value.signatures)
            inner |= {f"{module.name}.{called}" for called in value.py_func.__code__.co_names}
for name in compiled.keys() - inner:
    print(name, compiled[name])
"""


def test_all_that_a_predictor_calls_is_compiled() -> None:
    printed = subprocess.run([sys.executable, "-c", WARM_UP], capture_output=True, text=True, check=True, timeout=120).stdout
    called_from_outside = dict(line.split() for line in printed.splitlines())
    assert len(called_from_outside) > 12
    assert {name for name, compiled in called_from_outside.items() if compiled != "True"} == set()
