"""The cache: prefix tree, tiers, reuse policies, eviction, and the cluster-wide index."""
