"""Blocks between nodes: the host store of a node serves those of its arena, and workers of other nodes read them."""
