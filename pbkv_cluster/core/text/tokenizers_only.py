"""Keeps torch out of processes that need no more of `transformers` than its tokenizers."""

import sys
from typing import Any


def use_tokenizers_only() -> None:
    """Has `transformers` take torch for missing in this process, which must run no model.

    Its tokenizers never use torch, but importing one of them imports torch wherever it is installed: 200 MiB and two seconds of
    computing. No setting of `transformers` turns that off. Does nothing where torch has been imported already, or where
    `transformers` looks for it in another way.
    """
    from transformers.utils import import_utils

    utils: Any = import_utils
    found = getattr(utils, "_is_package_available", None)
    is_torch_available = getattr(utils, "is_torch_available", None)
    if "torch" in sys.modules or found is None or not hasattr(is_torch_available, "cache_clear"):
        return

    def without_torch(name: str, *args: Any, **options: Any) -> Any:
        answer = found(name, *args, **options)
        return answer if name != "torch" else (False, "N/A") if isinstance(answer, tuple) else False

    utils._is_package_available = without_torch
    utils.is_torch_available.cache_clear()
