"""The cluster's state in Redis: who its members are (`Directory`) and which worker holds which block (`BlockIndex`).

All of it expires, so a member that dies without notice disappears by itself. Redis never holds KV bytes, and losing it loses
nothing: workers announce themselves again (`IndexPublisher`), and readers get `Unavailable` and do without. Who asks often
keeps a copy in its own memory (`IndexMirror`).

A client sends a call again whose answer is late, so every call may be made twice, and nothing goes wrong then:

    announcements, removals         the second finds what it is to bring about
    holding a workflow              likewise: it is the caller's already
    taking a workflow, stamps       made once: the answer is kept, and given again (`OnceScript`)
    changes of blocks               made once, by the number or the id of the change
    what operators ask of nodes     is read, obeyed, and only then withdrawn; to obey it twice is harmless

Keys of one cluster, all under `pbkv:{CLUSTER}:`, braces included

    worker:{id}, node:{id}, service:{name}, gateway:{name}, member:{name}, endpoint:{member}, problem:{member}, workflow:{id},
    node-state:{id}, node-request:{id}
                                    a directory entry as JSON, with a time to live
    workers, nodes and so on        sorted sets of those ids by the time at which each expires
    blocks:{worker}:{incarnation}   hash of block key to packed residency, with a time to live
    changes                         stream of all that changes in these hashes
    stamp:{incarnation}             what a gateway has written last, with a time to live
    answer:{call}                   the answer to a call that is made once, with a time to live
"""

from pbkv_cluster.store.block_map import Match
from pbkv_cluster.store.cluster_index.block_index import BlockIndex
from pbkv_cluster.store.cluster_index.client import connect
from pbkv_cluster.store.cluster_index.directory import Directory, cluster_names
from pbkv_cluster.store.cluster_index.entries import (
    OUR_ENGINE,
    EndpointEntry,
    GatewayEntry,
    Holder,
    MemberEntry,
    NodeEntry,
    NodeRequest,
    NodeState,
    NodeStateEntry,
    ProblemsEntry,
    ServiceEntry,
    WorkerEntry,
    WorkflowEntry,
)
from pbkv_cluster.store.cluster_index.mirror import IndexMirror
from pbkv_cluster.store.cluster_index.publisher import IndexPublisher
from pbkv_cluster.store.cluster_index.redis_server import RedisServer

__all__ = [
    "OUR_ENGINE",
    "BlockIndex",
    "Directory",
    "EndpointEntry",
    "GatewayEntry",
    "Holder",
    "IndexMirror",
    "IndexPublisher",
    "Match",
    "MemberEntry",
    "NodeEntry",
    "NodeRequest",
    "NodeState",
    "NodeStateEntry",
    "ProblemsEntry",
    "RedisServer",
    "ServiceEntry",
    "WorkerEntry",
    "WorkflowEntry",
    "cluster_names",
    "connect",
]
