"""Interfaces to other software: OpenTelemetry spans in (`otel`), KV hints out (`kv_hints`), foreign engines
(`sidecar`, `vllm_worker`).
"""
