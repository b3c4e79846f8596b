"""Workflow events from OpenTelemetry spans, so that an application that is traced already needs no client of ours.

The way of a span:

    receiver, otlp_http           OTLP over gRPC and HTTP
    reading/spans                 checked spans
    reading/facts                 what the attributes of a span tell, in any dialect
    reading/dialects              the table of attributes: the conventions for generative AI, OpenInference, OpenLLMetry, ...
    reading/attributes, messages  values of attributes, and texts as hashed words
    reasons                       counts and logs what is dropped or not understood
    collector                     the workflow of each span
    history                       spans of traces that may turn out to be part of a conversation
    ancestry                      the agent and the conversation of a span, from the spans around it
    workflow                      the spans of one workflow in order of time, as workflow events
    receiver                      events to the predictor
    member                        the receiver as a process of a cluster
    recording                     spans as a trace instead, with hashes of their texts
"""
