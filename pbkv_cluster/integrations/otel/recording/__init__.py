"""Spans as a trace: `assembly` makes calls of spans, `files` reads them from files, `live` from an OTLP port."""
