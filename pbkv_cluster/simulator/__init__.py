"""Recorded and generated agent workflows, run on the production engine in virtual time, or replayed to a cluster in real time.

Only GPUs are simulated, by a cost model that moves clocks. Schedulers, caches, policies, router and predictor are a cluster's.
The folders, in the order in which a comparison of policies uses them:

- `traces/` reads recorded workflows (`files` recognises the format; `format` has the fields of ours) and splits them by task
  (`split`); `check` says all that is wrong with a file, `writing` writes one.
- `recording/` writes traces of a running cluster, and of calls that were logged as text.
- `workload/` makes of them what is run: which workflows arrive and when (`workload`); how long they pause and what they
  announce of it (`tools`); their token ids (`prompts`, `token_source`), predictor events (`events`) and access logs
  (`access_logs`). `generator` invents workflows.
- `policies/` holds the policies that exist only here: `oracle`, which knows the future, and `adversary`, which negates another.
- `prediction/` runs the real predictor: trained before a run (`training`), fed during it (`forecaster`), and scored on its own
  (`scores`, `trial`).
- `engine/` runs one workload once, as `setup` says: `simulation` submits steps and keeps the time, `router` chooses a worker
  for each, `worker` is one of them, `engine` the worker's engine with a short cut for decoding; `runner` and `cost_model`
  replace the GPU, `result` is what a run returns. `machines` has cost models of real machines, `calibrate` fits one.
- `evaluation/` compares policies: `pressure` finds cache sizes, `comparison` makes a `row` of each run of one workload,
  `experiment` runs a plan of workloads, pressures and seeds, `plot` draws it.
- `tuning/` searches settings with these comparisons.
- `report/` says whether a cache pays for a trace at all.

`replay/` submits the same workflows to a running cluster instead, and reports what its cache did.
"""
