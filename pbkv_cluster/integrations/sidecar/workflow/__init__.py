"""Workflows of requests that pass by.

local_workflows.py  opens and ends them, without a cluster
steps.py            a request as a step: its events, its engine, its usage
forecasts.py        the predictor, our own or a cluster's, and what it forecasts
hints.py            fields that tell an engine of workflow and forecast
"""
