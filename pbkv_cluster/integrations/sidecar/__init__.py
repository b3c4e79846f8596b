"""The sidecar: a proxy with OpenAI's API in front of engines that are not ours, such as vLLM and SGLang.

server.py   the parts put together
app.py      the paths
proxy.py    one request, from its body to the end of its answer
reading/    what requests and answers say
workflow/   whose step it is, and what the predictor is told and forecasts
engines/    what the engines hold, and which one is chosen
in_flight.py  the bounds
relayed.py  the answer on its way
figures.py  metrics
status.py   what operators are told
"""
