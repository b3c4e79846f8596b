"""The host store: one per node. It owns the node's arena of host memory and speaks for all caches of the node."""
