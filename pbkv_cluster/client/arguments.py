"""Refuses keyword arguments that a call does not have, and names those that it has."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from pbkv_cluster.client.requests import StepOptions

P = ParamSpec("P")
R = TypeVar("R")

# What other clients call them, where spelling alone does not lead there.
_ELSEWHERE = {
    "agent_id": "agent",
    "agent_name": "agent",
    "application": "workload",
    "graph": "step_graph",
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "messages": "prompt",
    "n_predict": "max_tokens",
    "prompt_token_ids": "prompt",
    "session_id": "workflow_id",
    "stop_sequences": "stop",
    "stop_token_ids": "stop",
    "timeout": "timeout_s",
    "ttl_s": "lease_s",
    "user": "tenant",
}


def known_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a call with a keyword argument that `function` does not have raise a TypeError that names the nearest one.

    The error is raised by the call itself, also where `function` is a generator or a coroutine, whose body runs later.
    """
    known = frozenset(_known(function))

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if unknown := kwargs.keys() - known:
            raise TypeError(f"{function.__qualname__}() {_problem(min(unknown), known)}")
        return function(*args, **kwargs)

    return call


def _known(function: Callable[..., Any]) -> Iterable[str]:
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:  # without self
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            yield from StepOptions.__annotations__
        else:
            yield name


def _problem(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    nearest = _nearest(name.lower(), names)
    hint = f"the nearest that it has is {nearest!r}" if nearest else "it has nothing like it"
    return f"has no argument {name!r}: {hint} (of {', '.join(names)})"


def _nearest(name: str, names: list[str]) -> str | None:
    if (meant := _ELSEWHERE.get(name)) in names:
        return meant
    longer = [each for each in names if name and each.startswith(f"{name}_")]
    return next(iter([*longer, *difflib.get_close_matches(name, names, n=1)]), None)
