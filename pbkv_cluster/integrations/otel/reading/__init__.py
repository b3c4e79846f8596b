"""OTLP to checked spans, whatever dialect their attributes are written in."""
