"""The central predictor: workflow events in, forecasts of the next agents out.

`base` is the contract of every model, `markov` the online model; `service` orders events and broadcasts, `server` speaks gRPC.
"""
