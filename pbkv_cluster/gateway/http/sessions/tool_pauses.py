"""Tool calls that a workflow waits for: they begin with the step that asks for them and end with a later step."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall

_MAX_WORKFLOWS = 65_536
_MAX_CALLS = 64  # of one workflow; further ones are not waited for


class Pending(NamedTuple):
    """A tool call that runs."""

    tool: str
    call_id: str
    agent: str


class ToolPauses:
    """The tool calls that run; of workflows beyond a bound, those that paused first are forgotten."""

    def __init__(self) -> None:
        self._pending: OrderedDict[str, list[Pending]] = OrderedDict()  # by workflow

    def begin(self, workflow: str, agent: str, calls: Sequence[FunctionCall]) -> list[Pending]:
        """An answer asks for calls. Returns those that begin."""
        pending = self._pending.setdefault(workflow, [])
        begun = [Pending(call.name, call.call_id, agent) for call in calls][: max(_MAX_CALLS - len(pending), 0)]
        pending += begun
        if not pending:
            del self._pending[workflow]
        while len(self._pending) > _MAX_WORKFLOWS:
            self._pending.popitem(last=False)
        return begun

    def end(self, workflow: str, agent: str, messages: Sequence[ChatMessage]) -> list[Pending]:
        """A prompt of an agent. Returns the calls that have ended: those whose results it holds, and the agent's own."""
        pending = self._pending.get(workflow)
        if not pending:
            return []
        results = {message.tool_call_id for message in messages if message.tool_call_id}
        ended = [call for call in pending if call.agent == agent or call.call_id in results]
        left = [call for call in pending if call not in ended]
        if left:
            self._pending[workflow] = left
        else:
            del self._pending[workflow]
        return ended

    def forget(self, workflow: str) -> None:
        """A workflow has ended."""
        self._pending.pop(workflow, None)
