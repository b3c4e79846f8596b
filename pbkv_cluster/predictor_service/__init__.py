"""The predictor: events of workflows in, forecasts of their next agents out. `server.PredictorServer` puts it together.

An event passes these files until a forecast leaves:

1. `servicer`: `ReportEvents` or `StreamEvents`, from the wire to plain events.
2. `service`: takes a batch of them, all or none.
3. `events/validation`: refuses malformed ones. `events/open_workflows`: finds duplicates, late ones and used-up ids.
4. `predictor/expert_predictor`: finds or makes the workflow's `predictor/prediction_state`.
5. `workload/recognizer`: decides to which of the `workload/workloads` it belongs; without a name from the client, by
   `workload/profiles`.
6. `workflow/progress`: adds the event to the steps so far, and moves in a declared graph (`workflow/graph_walk`).
7. `workflow/situation`: all that is known now. `workload/workload_model` makes a `workload/moment` of it: features for each of
   the `experts/`.
8. `broadcast/broadcaster`: notes that the workflow has changed, and with the next broadcast asks for its forecast.
9. `workload/workload_model` asks the experts, `experts/mixture` joins what they forecast, `predictor/agent_forecasts` turns the
   `experts/labels` back into agents' names.
10. `broadcast/subscription`: the forecast waits for its workers. `servicer`: `WatchForecasts`, to the wire.

Between broadcasts `service` has the models learn from the moments whose outcomes are known by then. The network of PBKV
(`network/`) is trained elsewhere, by `training/jobs` in a `training/process`. `state/` saves what has been learnt, `jit`
compiles loops, `predictor/warm_up` compiles them at start-up, and `access/` learns how workflows use their blocks. `figures`
reads the metrics; `workload/forecast_scores` tell how forecasts have done.
"""
