"""Where a client takes the output of its steps straight from workers."""

from dataclasses import dataclass

ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Receiver:
    """That of one call. Workers know a receiver that is connected to them by its id, which nobody else is to know."""

    id: bytes
    call: int  # number that the client has given it
