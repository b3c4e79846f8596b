"""`pbkv doctor`: whether this machine, and what a configuration names, can run a cluster; and whether a running one is well.

`finding` is what a check says. The checks: `software` (versions, extras, hashes), `machine` (memory, limits), `gpu`, `network`
(ports, Redis, clock) and `running` (a cluster's members). `command` runs them. Each works in a plain installation, or says what
is missing.
"""
