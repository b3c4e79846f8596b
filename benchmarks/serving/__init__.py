"""Benchmarks of what serves a step.

- `index`: prefix tree and cache, without KV.
- `engine`: our engine and plain `transformers`.
- `copies`: between a GPU pool and the arena, on a CPU, and beside the engine's steps.
- `gateway`: what the gateway adds to a step, on a running cluster (`cluster`).
- `idle`: memory of that cluster before its first step.
"""
