"""Says why the engine cannot run a model, in words about the model."""

import traceback

import torch

from pbkv_cluster.core.errors import StartupError


def refusal(path: str, reason: str) -> StartupError:
    """The error of a model that the engine would run wrongly or not at all."""
    return StartupError(f"model.path: the engine cannot run {path!r}: {reason}")


def reason_of(error: Exception) -> str:
    """What an error that the model's own code has raised says of the model.

    Refusals of paged attention explain themselves; of any other error only the place is told, since its text speaks of Python.
    """
    if isinstance(error, NotImplementedError) and str(error):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "the device has too little memory for it"
    place = _place(error)
    return f"its code does not work with its configuration, or not in a batch of paged sequences{place and f' ({place})'}"


def _place(error: Exception) -> str:
    """The innermost module of the model that was running."""
    modules = [
        type(frame.f_locals["self"]).__name__
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if isinstance(frame.f_locals.get("self"), torch.nn.Module)
    ]
    own = [name for name in modules if not hasattr(torch.nn, name)]
    return own[-1] if own else ""
