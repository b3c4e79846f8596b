"""Learned reuse: which blocks workflows read again and when, learnt from ended workflows and turned into ranks.

Workers record and rank, the predictor learns; both import this package. It knows nothing of trees, tiers and networks. Read
`record/segment.py` first: everything else is about segments, the runs of blocks that a workflow has always used together.

**`record/`: what workflows have read and written**

1. `segment`: a run of blocks and how its workflow has used it; attach symbols.
2. `segment_trie`: the segments of one workflow: walk, add, split.
3. `prefix_popularity`: how many workflows have read each prefix, a trie over all of them.
4. `prompt_runs`: where the two meet: a prompt as runs of equally shared blocks.
5. `workflow_record`: the steps of one workflow, built as they happen. Its `steps` are the access log (see `core`).
6. `replay`: the same record built from such a log, without tokens.

**`model/`: what is learnt from them**

1. `next_event`: which agent is called next, or the end; and where its prompt attaches.
2. `features`: facts about a segment after a step. `contexts`: combinations of facts, hashed to rows of a table.
3. `hazard`: for each row, how often such segments were used again after 1, 2, 3 ... steps; mixed by learnt weights.
4. `examples`: an access log as training examples of the hazard model.
5. `access_model`: both models of one workload together, and the updates in which they travel.
6. `access_models`: those of all workloads, each begun as a copy of the prior.

**`rank/`: what follows for the blocks of active workflows**

1. `forecast_blend`: the next event by the model and by the predictor's forecast, each trusted as far as it was right.
2. `next_use`: probabilities of the next use of some segments, by steps.
3. `durations`, `tool_timing`, `timing`: how long pauses, tool calls and steps take, and so when the next steps come.
4. `workflow_outlook`: both together for one workflow; valid until a step, a forecast or time changes it.
5. `outlook`: all active workflows; what the policy asks.
6. `density`: expected hits for each second that a block is kept.

From a forecast to a rank: a forecast arrives, and policy `pbkv` of package `cache` asks `Outlook.forecast_matters`. If the two
likeliest next events have changed, the workflow's nodes are ranked again before the next block is evicted:
`Outlook.unused` gives the probability that no workflow that has used a block uses it again within each horizon, the policy
multiplies it by those of workflows that have not used it yet, and `hit_density` makes one value of it.

How learning works: when a workflow ends, the worker sends its access log to the predictor. `AccessModels.learn` hands it to the
model of its workload, which replays it, turns every segment after every step into an example, predicts it, corrects the weights
and counts the outcome. The rows that have changed come back to the workers as an `AccessUpdate`. Logs and examples hold nothing
that only a later step shows.
"""
