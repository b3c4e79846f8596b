"""What the cluster knows about itself, in Redis: who is there (`Directory`) and who holds which block (`BlockIndex`).

Everything lives under a lease, so whatever dies without a word leaves by itself. Redis never holds KV bytes, and losing it
loses nothing: workers announce themselves again (`IndexPublisher`), and readers get `Unavailable` and fall back.

Keys of one cluster, all under `pbkv:{cluster}:`

    worker:{id}, node:{id}, service:{name}, workflow:{id}   a record as JSON, with its lease as time to live
    workers, nodes, services, workflows                     sorted sets of those ids by the end of their lease
    blocks:{worker}:{incarnation}                           hash of block key to tiers, with the worker's lease
"""

from pbkv_cluster.store.cluster_index.block_index import BlockIndex, Holder, Match
from pbkv_cluster.store.cluster_index.client import connect
from pbkv_cluster.store.cluster_index.directory import Directory
from pbkv_cluster.store.cluster_index.entries import NodeEntry, ServiceEntry, WorkerEntry, WorkflowEntry
from pbkv_cluster.store.cluster_index.publisher import IndexPublisher
from pbkv_cluster.store.cluster_index.redis_server import RedisServer

__all__ = [
    "BlockIndex",
    "Directory",
    "Holder",
    "IndexPublisher",
    "Match",
    "NodeEntry",
    "RedisServer",
    "ServiceEntry",
    "WorkerEntry",
    "WorkflowEntry",
    "connect",
]
