"""Makes our eviction policy known to SGLang. Its processes call `register` when they start (entry point `sglang.srt.plugins`).

SGLang's Rust tree knows only its own policies: set SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND=python.
"""

from __future__ import annotations

import logging
import os

import sglang
from sglang.srt.arg_groups.choices import RADIX_EVICTION_POLICY_CHOICES, add_radix_eviction_policy_choices
from sglang.srt.mem_cache import utils
from sglang.srt.mem_cache.evict_policy import EvictionStrategy
from sglang.srt.mem_cache.radix_cache import TreeNode

from pbkv_cluster.core.config import load
from pbkv_cluster.core.errors import PbkvError
from pbkv_cluster.integrations.engine_versions import check_version
from pbkv_cluster.integrations.sglang.aged_uses import AgedUses

log = logging.getLogger(__name__)

POLICY = "pbkv-lfu"


class PbkvLfuStrategy(EvictionStrategy):
    """Evicts first what was used least, older uses counting less. `--radix-eviction-policy-config '{"half_life_s": 600}'`."""

    def __init__(self, half_life_s: float = 600.0) -> None:
        """Args:
        half_life_s: seconds after which a use counts half.

        Raises:
            InvalidArgument: it is not a positive number.
        """
        self._uses = AgedUses(half_life_s)

    def get_priority(self, node: TreeNode) -> float:
        return self._uses.value(node)


def register() -> None:
    """Adds the policy to SGLang's list. Where it cannot, it only says so: SGLang must start for those who do not use it."""
    try:
        check_version("sglang", sglang.__version__, load(env=os.environ).config.plugins.any_version)
    except PbkvError as error:
        log.warning("--radix-eviction-policy %s is not available: %s", POLICY, error)
        return
    utils._EVICTION_POLICY_FACTORIES[POLICY] = PbkvLfuStrategy
    if POLICY not in RADIX_EVICTION_POLICY_CHOICES:
        add_radix_eviction_policy_choices([POLICY])
