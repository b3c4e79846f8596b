"""Benchmark of the predictor on recorded workloads.

- `benchmark`: options, and the parts that they ask for.
- `accuracy`: how often the actual agent is the likeliest forecast, after changes (drift), and without each expert (ablation).
- `load`: time per forecast and per event, and memory per open workflow.
- `latency`: from an event at the gateway to re-keyed eviction candidates on a worker.
"""
