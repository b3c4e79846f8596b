"""Ray's object store, two nodes on this machine: one makes objects, the other pulls them. `over_ray.py blocks|whole`."""

import os
import sys
import time
from typing import Any

from benchmarks.peers.child import BLOCK_BYTES, BLOCKS, SIZE, serve_reads

os.environ.update(RAY_memory_monitor_refresh_ms="0")


def main() -> None:
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for name in ("a", "b"):
        cluster.add_node(num_cpus=1, resources={name: 1}, object_store_memory=8 * SIZE, include_dashboard=False)
    cluster.wait_for_nodes(60)
    ray.init(address=cluster.address, log_to_driver=False)
    sizes = [BLOCK_BYTES] * BLOCKS if sys.argv[1] == "blocks" else [SIZE]

    @ray.remote(num_cpus=0, resources={"a": 0.1})
    class Owner:
        """Makes new objects for each read: one that has been pulled is on both nodes."""

        def make(self) -> list[Any]:
            return [ray.put(np.full(size, 7, np.uint8)) for size in sizes]

    @ray.remote(num_cpus=0, resources={"b": 0.1})
    class Reader:
        def read(self, references: list[Any]) -> float:
            start = time.perf_counter()
            found = ray.get(references)
            seconds = time.perf_counter() - start
            assert sum(len(each) for each in found) == SIZE
            return seconds

    owner: Any = Owner.remote()  # type: ignore[attr-defined]
    reader: Any = Reader.remote()  # type: ignore[attr-defined]
    serve_reads(lambda: float(ray.get(reader.read.remote(ray.get(owner.make.remote())))))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
