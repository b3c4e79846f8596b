"""Many steps over one stream: from a client to its gateway (`SubmitSteps`), and from a gateway to a worker (`RunSteps`).

A call of its own for each step costs both processes far more than the step's messages do, and so does a message for each token.

step_calls, outbox       who runs the steps
step_streams             who sends them
step_output              what a client gets of one step
direct_output, receiver  the same, where it may come straight from the worker
unsettled                steps whose end the client knows before the gateway does
"""
