"""Reuse policies by name. Importing this package registers those that come with the project."""

from pbkv_cluster.store.policies import lru, pbkv, pbkv_paper
from pbkv_cluster.store.policies.base import POLICIES, ReusePolicy

__all__ = ["POLICIES", "ReusePolicy", "lru", "pbkv_paper"]
