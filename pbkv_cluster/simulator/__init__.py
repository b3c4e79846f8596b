"""Workflows to drive a cluster with: recorded ones and generated ones, and the closed loop that replays either.

`traces` reads recorded workflows and `workflows` generates them, as the same values. `prompts` rebuilds their token ids.
`replay` submits them to a cluster and reports what its cache did.
"""
