"""The prior of policy `pbkv`: `learn` makes it, `benchmark` measures what it is worth to a workload that it has not seen."""
