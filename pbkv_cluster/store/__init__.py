"""The CPU store of a cluster: host memory for cached blocks, and the index of who holds which block.

Host memory, as a worker meets it:

    server.py                        a node's host store: an arena, and the gRPC server in front of it
    servicer.py                      its RPCs: give a worker a region; pass other calls on to all workers of the node
    region_lease.py                  gets a region from the host store, maps and locks it
    fan_out.py                       calls to several workers at once, and the sum of their answers
    figures.py                       metrics of the host store, and of reading other nodes' blocks
    arena/arena.py                   the node's shared memory in regions, one per worker: given out, renewed, expired, freed
    arena/segment.py                 that memory: a file without a name, made or found again
    arena/machine.py                 what the machine offers: free memory, huge pages, NUMA nodes
    arena/region_table.py            which regions there are, in the arena itself
    arena/region_lock.py             the file lock that shows that a worker still has its region mapped
    arena/page_touch.py              takes a region's memory in the background, once its owner has it mapped
    arena/layout.py                  where everything is in the arena, to the byte
    arena/slots.py                   writes and reads the slots of a region, which describe themselves
    arena/arena_view.py              all regions of an arena, as any process of the node reads them

Blocks of others:

    block_source.py                  where a block lies, and what reads it from there
    sibling_source.py                reads blocks of the node's other workers, in the arena
    peers/source.py                  reads blocks of other nodes: finds each node's server, keeps connections to it
    peers/transport.py               what carries blocks from node to node, as an interface
    peers/transports.py              the transports by name: a plug-in may take the place of TCP
    peers/addresses.py               where the servers of other nodes are, as the directory says
    peers/tcp.py                     the reader's end of a TCP connection: requests, payloads, checksums
    peers/server.py                  serves an arena over TCP, a thread for each connection, all of it bounded
    peers/handshake.py               both sides prove that they are of one cluster, and agree on a version
    peers/wire.py                    requests and answers, to the byte
    peers/stream.py                  a socket with time limits

The disk, as a worker meets it:

    disk/disk_slots.py               slots in one preallocated file, laid out as a region of the arena
    disk/write_behind.py             writes them on a thread of its own, from a bounded buffer

The index in Redis, as a block enters it:

    cluster_index/redis_server.py    the Redis server: a running one, or one that this process starts
    cluster_index/redis_check.py     whether a running server can hold the cluster's state
    cluster_index/redis_process.py   a server process that is started again whenever it dies
    cluster_index/redis_launcher.py  script that becomes a server which the kernel ends with us
    redis_connection/connection.py   connections to a server that may change, by Sentinels or in a Redis Cluster
    redis_connection/primary.py      which server it is now
    cluster_index/client.py          Redis clients, and their errors as `Unavailable`
    cluster_index/publisher.py       announces a worker and its blocks for as long as the worker runs
    cluster_index/directory.py       members and workflows of the cluster: announce, withdraw, list
    cluster_index/entries.py         what a directory entry contains, and its JSON
    cluster_index/expiring_table.py  one table of entries that expire (`entry_put.lua`, `entry_remove.lua`)
    cluster_index/block_index.py     where each worker holds which block; how much of a prompt each holds (`match.lua`)
    cluster_index/change_stream.py   all changes of that, in order, for those who keep a copy
    cluster_index/mirror.py          such a copy, which repairs itself
    block_map.py                     what the copy is: who holds what, asked at every placement and admission
    kv_events/messages.py            events of a cache, as other systems write and read them
    kv_events/event_publisher.py     publishes a worker's
    kv_events/event_subscriber.py    follows those of any engine
    kv_events/engine_blocks.py       what that engine holds, by the tokens of its blocks
    kv_events/copies.py              how many copies of a block it holds
    kv_events/unknown_blocks.py      how many blocks it holds that are not known
"""
