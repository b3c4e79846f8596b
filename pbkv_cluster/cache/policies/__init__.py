"""Reuse policies by name. Importing this package registers those that come with the project."""

from pbkv_cluster.cache.policies import continuum, kvflow, lfu, lru, pbkv, pbkv_paper
from pbkv_cluster.cache.policies.base import POLICIES, ReusePolicy

__all__ = ["POLICIES", "ReusePolicy", "continuum", "kvflow", "lfu", "lru", "pbkv", "pbkv_paper"]
