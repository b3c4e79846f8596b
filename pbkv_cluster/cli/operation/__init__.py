"""Commands for operators: processes of clusters on this machine, a cluster's nodes, caches, workflows and agents."""
