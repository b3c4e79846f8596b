"""The central predictor: workflow events in, forecasts of the next agents out.

`base` is the contract of predictors. Ours, `expert_predictor`, follows each workflow (`track`), finds the workload that it is
of (`workloads`, `recognition`), and has that workload's experts (`experts/`) forecast, joined by a mixture (`workload_model`,
`mixture`).
`service` orders events and broadcasts, `server` speaks gRPC, `training` runs elsewhere what takes seconds. `access_learner`
learns how workflows use their blocks.
"""
