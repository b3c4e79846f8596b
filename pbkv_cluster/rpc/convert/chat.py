"""Messages of a conversation."""

from collections.abc import Sequence

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.text.chat_message import ChatMessage, FunctionCall
from pbkv_cluster.rpc.v1 import types_pb2


def chat_to_wire(messages: Sequence[ChatMessage]) -> types_pb2.ChatMessages:
    chat = types_pb2.ChatMessages()
    for message in messages:
        wire = chat.messages.add(role=message.role, name=message.name, tool_call_id=message.tool_call_id)
        if isinstance(message.content, str):
            wire.content = message.content
        else:
            for part in message.content:
                wire.parts.add(text=part)
        for call in message.tool_calls:
            wire.tool_calls.add(id=call.call_id, name=call.name, arguments=call.arguments)
    return chat


def chat_from_wire(chat: types_pb2.ChatMessages) -> tuple[ChatMessage, ...]:
    """Raises:
    InvalidArgument: a message has both content and parts.
    """
    return tuple(_message(position, message) for position, message in enumerate(chat.messages))


def _message(position: int, message: types_pb2.ChatMessage) -> ChatMessage:
    if message.content and message.parts:
        raise InvalidArgument("prompt.messages.parts", f"must not be set together with content, in message {position}")
    return ChatMessage(
        message.role,
        tuple(part.text for part in message.parts) if message.parts else message.content,
        message.name,
        message.tool_call_id,
        tuple(FunctionCall(call.name, call.arguments, call.id) for call in message.tool_calls),
    )
