"""Workflows to drive a cluster with, recorded or generated, on a cluster in real time or on the engine in virtual time.

`traces` reads recorded workflows and `workflows` generates them, as the same values. `prompts` rebuilds their token ids.
`replay` submits them to a cluster and reports what its cache did.

`simulation` drives the real engine, cache, policies and predictor with a workload (`workload`) on a clock that a cost model
moves (`cost_model`, `runner`). `pressure` finds cache sizes that compare, `oracle` is the policy that knows the future, and
`experiment` sets policies against each other.
"""
