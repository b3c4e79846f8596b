"""What a client has of a step whose call ended before the step did, so that another call can go on from there."""

from dataclasses import dataclass, field
from typing import Self

from pbkv_cluster.core.workflow.step_events import Accepted, GatewayEvent, HandedOver, Tokens


@dataclass(frozen=True, slots=True)
class Resumption:
    """The output of a step so far."""

    step: int | None = None  # number in the workflow; None: the client was not told
    packed: bytes = b""  # token ids, see `core.tokens`
    characters: int = 0  # of text


@dataclass(slots=True)
class Received:
    """The same, while it grows."""

    step: int | None = None
    packed: bytearray = field(default_factory=bytearray)
    characters: int = 0
    greeted: bool = False  # an Accepted has come

    @classmethod
    def after(cls, resumption: Resumption | None) -> Self:
        """What a client has when it makes another call."""
        if resumption is None:
            return cls()
        return cls(resumption.step, bytearray(resumption.packed), resumption.characters)

    def take(self, event: GatewayEvent) -> bool:
        """Notes an event. False if the client knows it: every call begins with an Accepted, of which it sees one."""
        match event:
            case Accepted():
                greeted, self.greeted, self.step = self.greeted, True, event.step
                return not greeted
            case Tokens():
                self.packed += event.packed
                self.characters += len(event.text)
            case HandedOver():
                self.take(event.event)
        return True

    def resumption(self) -> Resumption | None:
        """What another call is told; None: nothing has come yet."""
        if self.step is None and not self.packed and not self.characters:
            return None
        return Resumption(self.step, bytes(self.packed), self.characters)
