"""Tool calls: what a workflow waits for between two of its steps."""

from dataclasses import dataclass

from pbkv_cluster.core import checks


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool, as the client announces it.

    Raises:
        InvalidArgument: a field is missing or out of its range.
    """

    tool: str  # name of the tool
    call_id: str = ""  # distinguishes calls of one tool that overlap
    expected_s: float | None = None  # how long the client expects it to take, in seconds; None: it does not know

    def __post_init__(self) -> None:
        checks.required_name("tool", self.tool)
        checks.name("call_id", self.call_id)
        if self.expected_s is not None:
            checks.seconds("expected_s", self.expected_s)
