"""Workflow events from OpenTelemetry spans, so that an application that is traced needs no client of ours.

OTLP (`receiver`, `otlp_http`) → checked spans (`spans`, `attributes`, `messages`) → one order per workflow (`collector`,
`workflow`, `ancestry`) → `WorkflowEvent`s for the predictor. Spans follow the semantic conventions for generative AI
(`conventions`).
"""
