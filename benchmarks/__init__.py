"""The project's benchmarks: `python -m benchmarks`. What each measures, and how, is in README.md.

- `report` holds figures and prints them, `timing` measures in turn.
- `serving/` has the benchmarks of the path of a step: `index`, `engine`, `copies`, `gateway`, `idle`, `restart`, `metrics`,
  `fidelity`, `groupchat`.
- `policies/` compares reuse policies on recorded workloads, in virtual time.
- `prior/` measures what the prior is worth, `regimes/` where policy `pbkv` saves seconds; both in virtual time.
- `predictor/` measures forecasts on the same workloads: accuracy, time, memory.
- `results/` has the figures that the documents quote.
"""
