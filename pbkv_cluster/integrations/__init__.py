"""Ways in and out that others have agreed on: OpenTelemetry spans in (`otel`), KV hints out (`kv_hints`)."""
