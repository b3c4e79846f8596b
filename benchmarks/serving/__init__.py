"""Benchmarks of what serves a step.

- `index`: prefix tree and cache, without KV.
- `engine`: our engine and plain `transformers`.
- `gateway`: what the gateway adds to a step, on a running cluster (`cluster`).
- `idle`: memory of that cluster before its first step.
"""
