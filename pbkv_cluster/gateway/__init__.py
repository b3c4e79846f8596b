"""A gateway: workflows and their steps in, steps to workers, their output back, events to the predictor.

A step passes these files in this order:

    servicer.py                  the wire: `WorkflowService` messages to plain values and back
    step/request.py              `StepRequest`: a step as any front door submits it
    step/request_wire.py         its message, also between gateways
    step/submission.py           from the request to the last event: number in the workflow, clean-up
    step/forwarding.py           passes it on, if another gateway holds its workflow
    step/answers.py              runs it once, if it has an id and is submitted again
    step/request_reader.py       checks the request and fills in what it leaves out
    step/admission/admission.py          bounds on steps in flight
    step/admission/limits.py             what each tenant and workflow has in flight
    step/admission/counted_prompts.py    prompts of requests that are no steps, which count as such
    step/admission/steps_in_flight.py    those that have an id: one may begin after the end of others
    step/step.py, step/state.py  the step: what it is to do, its state
    step/prompt_reader.py        prompt to tokens and block keys
    routing/infinite_cache.py    available tokens of the prompt
    step/relay.py                loop: place, pass output on unless the worker does, go on elsewhere when the worker is lost
    step/reports.py              tells the predictor of its beginning and end
    routing/prompt_keys.py       block keys of its prompt, for the workers of each engine
    routing/placement.py         waits for workers, asks the index what each has cached
    routing/contexts.py          where the contexts of the workflow's agents lie, and how much memory open workflows take
    routing/workflow_sizes.py    how large workflows of its kind have become
    routing/shared_starts.py     what an agent's contexts share between workflows, which is no workflow's own
    routing/router.py            scores the candidates, in seconds
    routing/worker_pool.py       the live workers
    routing/worker.py            link to one worker: `WorkerService` messages to plain values and back
    routing/load.py              the steps on one worker: their tokens, the prefixes that they compute
    routing/speeds.py            measured speeds of steps, prefill and loads, and lengths of outputs

    http/                        another front door: OpenAI's and Anthropic's APIs

A workflow:

    workflow/requests.py         start of a workflow, report of a tool call, as plain values
    workflow/calls.py            calls about workflows, here or at the gateway that holds them
    workflow/lifecycle.py        start, find, take over, renew, end
    workflow/gone_gateways.py    takes over those of gateways that are gone for good
    workflow/open_workflows.py   the open workflows in memory, and their leases
    workflow/entry_writer.py     their entries in the directory, which say who holds them
    peers/                       the other gateways
    workflow/events.py           their events, numbered
    workflow/step_teller.py      their steps, told to the workers that run others of them
    predictor_feed/              their events, to the predictor
    inspection/                  for operators: their steps, the reuse of each agent's prompts, whether the index is right

Everywhere: `server.py` puts the parts together, `checks.py` checks fields, `decisions.py` lists the reason codes,
`meter.py` adds up what steps cost, `status.py` reads the status of the cluster, `figures.py` the gateway's metrics,
`cache_servicer.py` answers what operators ask of all its caches.
"""
