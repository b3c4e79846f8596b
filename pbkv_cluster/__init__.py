"""A distributed KV-cache service for LLM agent workflows."""

__version__ = "0.1.0"
