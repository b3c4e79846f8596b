"""Errors that a caller can act on. Each maps to one gRPC status (`rpc.errors`)."""


class PbkvError(Exception):
    """Base of all errors that the service raises on purpose."""


class InvalidArgument(PbkvError):
    """The caller sent something wrong; `field` says where, in the caller's own terms."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class NotFound(PbkvError):
    """What the caller named does not exist, or no longer."""


class FailedPrecondition(PbkvError):
    """The request is well formed, but this server is not set up for it."""


class ResourceExhausted(PbkvError):
    """A bounded queue is full: try again later."""


class Unavailable(PbkvError):
    """Something the request needs is not there now: try again later."""


class DeadlineExceeded(PbkvError):
    """The time that the caller gave is over."""


class ConfigError(PbkvError):
    """The configuration is wrong; the message names the field and where its value came from."""


class StartupError(PbkvError):
    """The service cannot start; the message names the cause."""
