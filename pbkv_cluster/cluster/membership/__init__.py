"""Members of a cluster, and how each is known to the others."""
