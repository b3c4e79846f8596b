"""Keeps out of a worker what torch and `transformers` load for compilers, training and several devices.

A worker runs a model on one device, and compiles nothing. torch's compiler and its distributed tensors take 35 MiB in each
worker, and seconds of computing at its start.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_COMPILER = "torch._dynamo"
_READ_BY_MASKS = f"{_COMPILER}._trace_wrapped_higher_order_op"  # what `transformers` imports of the compiler to use it
_MARKS = ("allow_in_graph", "assume_constant_result", "disable")  # decorators that only tell the compiler something


def use_inference_only() -> None:
    """Has `transformers` take distributed tensors for missing, and torch's compiler load when it is first used.

    To be called before a model is loaded. Does nothing where `transformers` has loaded its models' base class or torch its
    compiler already, or where these are made in another way than is known here.
    """
    from transformers import utils
    from transformers.utils import import_utils

    modules: tuple[Any, ...] = (utils, import_utils)
    known = all(hasattr(module, "is_torch_distributed_available") for module in modules)
    if not known or "transformers.modeling_utils" in sys.modules:
        return
    for module in modules:
        module.is_torch_distributed_available = _absent
    _defer_compiler()


def _absent() -> bool:
    return False


def _defer_compiler() -> None:
    spec = importlib.util.find_spec(_COMPILER)
    if _COMPILER in sys.modules or spec is None or spec.loader is None:
        return
    module = _DeferredCompiler(_COMPILER)
    module.__spec__, module.__loader__, module.__file__, module.__package__ = spec, spec.loader, spec.origin, _COMPILER
    for name in _MARKS:
        setattr(module, name, _mark)
    sys.modules[_COMPILER] = module
    module.__path__ = list(spec.submodule_search_locations or ())
    try:
        importlib.import_module(_READ_BY_MASKS)
    except ModuleNotFoundError:
        del sys.modules[_COMPILER]
        return
    del module.__path__  # so that the import of any other part loads all of it first


def _mark(function: Callable[..., Any] | None = None, *options: Any, **named: Any) -> Any:
    """Takes the place of a decorator, with or without arguments, that only tells the compiler something."""
    return function if callable(function) else lambda decorated: decorated


class _DeferredCompiler(ModuleType):
    """torch's compiler, which loads when anything but a mark is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # what the import system looks for
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        self.__path__ = list(spec.submodule_search_locations or ())
        spec.loader.exec_module(self)
        return getattr(self, name)


class WithoutReferences(TorchFunctionMode):
    """Has `transformers` build a model on the `meta` device, which has shapes only, without torch's references in Python.

    On that device torch computes much by them, and they load symbolic mathematics: 33 MiB. What a model computes when it is
    built are tables from ranges of numbers, which are computed on the CPU. Weights are not drawn: the checkpoint replaces them.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if function is torch.nn.init.normal_:
            tensor = args[0] if args else named["tensor"]
            if tensor.is_meta:
                return tensor
        elif function is torch.arange and torch.device(named.get("device") or "cpu").type == "meta":
            named = {**named, "device": "cpu"}
        return function(*args, **named)
