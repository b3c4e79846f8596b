"""Benchmark of reuse policies on recorded workloads, in virtual time.

- `job`: options, and the runs that they ask for.
- `benchmark`: makes the missing runs, one process per workload and seed.
- `row_file`: keeps their rows, so that an interrupted benchmark goes on where it stopped.
- `pooled`: figures over many workloads and seeds.
- `tables`: prints them. `goals`: what the project wants of them.
- `ablation`: variants of our policy without one of its parts, to be named by path.
"""
