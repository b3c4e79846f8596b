"""vLLM's CPU tier under a replay of recorded workflows: our eviction policy beside vLLM's own.

`benchmark` is the benchmark. It starts `child` with the Python of an environment that has vLLM; `replay` plays a workload
against a real `CPUOffloadingManager`, and `timed_policy` is our policy in the replay's time.
"""
