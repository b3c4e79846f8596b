"""Fields of records that a whole call has in common."""


def bind(**fields: object) -> None:
    """Adds fields to all records that the present task logs from now on."""
    from structlog.contextvars import bind_contextvars

    bind_contextvars(**fields)
