"""Errors that a caller can act on. Each class has one gRPC status (`rpc.errors`)."""


class PbkvError(Exception):
    """Base of all errors that the service raises on purpose."""


class InvalidArgument(PbkvError):
    """The caller sent a bad value. `field` is its name in the request, the configuration or the command line."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class PromptTooLong(InvalidArgument):
    """The prompt leaves no room for output in the model's context."""


class NotFound(PbkvError):
    """What the caller named does not exist, or no longer exists."""


class FailedPrecondition(PbkvError):
    """The request is well formed, but this server is not configured for it."""


class ResourceExhausted(PbkvError):
    """A bounded queue is full: try again later, by an estimate after `retry_after_s` seconds (None: nobody knows)."""

    def __init__(self, problem: str, retry_after_s: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after_s = retry_after_s


class LimitExceeded(ResourceExhausted):
    """What the caller has in flight has reached a limit; `limit` names the setting."""

    def __init__(self, problem: str, limit: str, retry_after_s: float | None = None) -> None:
        super().__init__(problem, retry_after_s)
        self.limit = limit


class Unavailable(PbkvError):
    """Something that the request needs is not available now: try again later."""


class TryAgain(Unavailable):
    """The gateway that was called has gone or is going, or the workflow has just moved to another: the same call may succeed at
    once, there or elsewhere.
    """


class DeadlineExceeded(PbkvError):
    """The caller's time limit has passed."""


class Unauthenticated(PbkvError):
    """The caller has shown no API key, or one that nobody has."""


class PermissionDenied(PbkvError):
    """The caller is known, and may not do this."""


class ConfigError(PbkvError):
    """The configuration is wrong; the message names the field and the source of its value."""


class StartupError(PbkvError):
    """The service cannot start; the message names the cause."""
