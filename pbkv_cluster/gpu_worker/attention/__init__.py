"""Paged attention: the contract (`base`), and one back end in each other file."""

from collections.abc import Callable

import torch

from pbkv_cluster.gpu_worker.attention import sdpa, varlen
from pbkv_cluster.gpu_worker.attention.base import ATTENTION, IMPLEMENTATION, PROBING, PagedBatch, Span, install

__all__ = ["ATTENTION", "IMPLEMENTATION", "PROBING", "PagedBatch", "Span", "choose", "install", "sdpa", "varlen"]


def choose(name: str, device: torch.device, dtype: torch.dtype) -> Callable[..., PagedBatch]:
    """The back end called `name`; `auto` chooses the fastest for the device.

    Raises:
        InvalidArgument: there is no such back end.
    """
    if name == "auto":
        name = "varlen" if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) else "sdpa"
    return ATTENTION.get(name)
