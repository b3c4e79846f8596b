"""Workflow events from OpenTelemetry spans, so that an application that is traced already needs no client of ours.

The way of a span:

    receiver, otlp_http           OTLP over gRPC and HTTP
    spans, attributes, messages   OTLP to checked spans
    conventions                   the semantic conventions for generative AI that spans follow
    collector                     the workflow of each span
    ancestry                      the agent and the conversation of a span, from the spans around it
    workflow                      the spans of one workflow in order of time, as workflow events
    receiver                      events to the predictor
    member                        the receiver as a process of a cluster
"""
