"""Errors at both ends of a call: each class of `core.errors` has one gRPC status."""

import asyncio
import inspect
import logging
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from pbkv_cluster.core import errors

log = logging.getLogger(__name__)

_PUSHBACK = "grpc-retry-pushback-ms"  # see gRPC's proposal A6
# Trailing metadata of a call that a server of ours ended with UNAVAILABLE: whether the same call is worth another try. Without
# it, gRPC itself gives the status: the server, or the way to it, is gone.
_ANSWER = "pbkv-answer"
_FINAL, _AGAIN = "final", "again"
# Trailing metadata that tells errors of one status apart: the setting whose limit was reached, and a prompt that is too long.
_LIMIT = "pbkv-limit"
_KIND, _PROMPT_TOO_LONG = "pbkv-kind", "prompt-too-long"

# Details are metadata, of which gRPC takes 16 KiB: with more, the caller would get UNAVAILABLE in place of the status.
_DETAILS_BYTES = 2048
# How gRPC says that it cannot connect, after what it has tried: the last address, and why not.
_NOT_CONNECTED = re.compile(r"failed to connect to all addresses; last error: \w+: (?:ipv[46]:)?(\S+): (.*)", re.DOTALL)
_REMOTE_HOST = "Failed to connect to remote host: "  # by TCP: nobody has taken the connection
_HTTP_1 = "Trying to connect an http1.x server"

_STATUS: dict[type[errors.PbkvError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
}


def from_rpc(error: aio.AioRpcError | grpc.RpcError) -> errors.PbkvError:
    """The error that the other side raised, as far as the status shows it."""
    code = error.code() if callable(getattr(error, "code", None)) else grpc.StatusCode.UNKNOWN
    details = (error.details() if callable(getattr(error, "details", None)) else None) or code.name
    made = from_status(code, _in_words(details), _pushback_s(error), is_final=_answer(error) == _FINAL)
    if isinstance(made, errors.ResourceExhausted) and (limit := _trailing_value(error, _LIMIT)):
        return errors.LimitExceeded(details, limit, made.retry_after_s)
    if isinstance(made, errors.InvalidArgument) and _trailing_value(error, _KIND) == _PROMPT_TOO_LONG:
        return errors.PromptTooLong(made.field, made.problem)
    return made


def _in_words(details: str) -> str:
    """Details of a status, those of a connection that gRPC cannot make in words that people know."""
    if (found := _NOT_CONNECTED.fullmatch(details)) is None:
        return details
    address, why = unquote(found[1]), found[2]
    if why.startswith(_REMOTE_HOST):
        return f"nobody answers at {address}: {why.removeprefix(_REMOTE_HOST)}"
    return f"cannot connect to {address}: {'it speaks HTTP/1.1, not gRPC' if _HTTP_1 in why else why}"


def from_status(
    code: grpc.StatusCode, details: str, retry_after_s: float | None = None, *, is_final: bool = False
) -> errors.PbkvError:
    """The error that a status stands for.

    Args:
        code: of the status.
        details: of the status.
        retry_after_s: seconds after which RESOURCE_EXHAUSTED may be over; None: unknown.
        is_final: the server itself has answered UNAVAILABLE, and the same call would fail again.
    """
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            field, _, problem = details.partition(": ")
            return errors.InvalidArgument(field, problem)
        case grpc.StatusCode.NOT_FOUND:
            return errors.NotFound(details)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return errors.FailedPrecondition(details)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.ResourceExhausted(details, retry_after_s)
        case grpc.StatusCode.UNAVAILABLE:
            return errors.Unavailable(details) if is_final else errors.TryAgain(details)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded(details)
        case grpc.StatusCode.UNAUTHENTICATED:
            return errors.Unauthenticated(details)
        case grpc.StatusCode.PERMISSION_DENIED:
            return errors.PermissionDenied(details)
    return errors.PbkvError(f"{code.name}: {details}")


def trailing_metadata(error: Exception) -> tuple[tuple[str, str], ...]:
    """Metadata that says what the status does not: whether the call is worth another try, and when; gRPC's own retries keep to
    the latter.
    """
    told = []
    if isinstance(error, errors.Unavailable):
        told.append((_ANSWER, _AGAIN if isinstance(error, errors.TryAgain) else _FINAL))
    if isinstance(error, errors.ResourceExhausted) and error.retry_after_s is not None:
        told.append((_PUSHBACK, str(math.ceil(1000 * error.retry_after_s))))
    if isinstance(error, errors.LimitExceeded):
        told.append((_LIMIT, error.limit))
    if isinstance(error, errors.PromptTooLong):
        told.append((_KIND, _PROMPT_TOO_LONG))
    return tuple(told)


def is_unanswered(error: aio.AioRpcError | grpc.RpcError) -> bool:
    """Whether a call failed because its server, or the way to it, is gone."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and not _answer(error)


def _answer(error: aio.AioRpcError | grpc.RpcError) -> str:
    return _trailing_value(error, _ANSWER)


def _pushback_s(error: aio.AioRpcError | grpc.RpcError) -> float | None:
    value = _trailing_value(error, _PUSHBACK)
    return int(value) / 1000 if value.isdecimal() else None


def _trailing_value(error: aio.AioRpcError | grpc.RpcError, name: str) -> str:
    metadata: Any = error.trailing_metadata() if callable(getattr(error, "trailing_metadata", None)) else ()
    return next((str(value) for key, value in metadata or () if key == name), "")


def to_status(error: Exception, method: str) -> tuple[grpc.StatusCode, str]:
    """The status and the details of an error that a method has raised. Any other than a `PbkvError` is a defect: logged."""
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return status, _bounded(str(error))
    log.error("%s failed", method, exc_info=error)
    return grpc.StatusCode.INTERNAL, _bounded(f"{type(error).__name__}: {error}")


def _bounded(details: str) -> str:
    """Details that quote what the caller has sent may be as long as that was."""
    encoded = details.encode(errors="replace")
    return details if len(encoded) <= _DETAILS_BYTES else encoded[:_DETAILS_BYTES].decode(errors="ignore") + "…"


class ErrorInterceptor(aio.ServerInterceptor):
    """Turns a `PbkvError` into its status, and a message that cannot be decoded into INVALID_ARGUMENT.

    Any other exception is a defect: logged with its traceback, sent as INTERNAL.
    """

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        codec: Any = {
            "request_deserializer": _decoder(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(_guard_unary(handler.unary_unary, method), **codec)
        if handler.unary_stream is not None:
            # Most streams are served by a generator; some, like the health service's Watch, by a coroutine that writes.
            guard = _guard_unary if inspect.iscoroutinefunction(handler.unary_stream) else _guard_stream
            return grpc.unary_stream_rpc_method_handler(guard(handler.unary_stream, method), **codec)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(_guard_stream(handler.stream_stream, method, requests=True), **codec)
        return handler


class _Undecodable:
    """Stands in for a request that is not a message of its type."""


def _decoder(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """`decode`, without its error: outside of a handler, gRPC would log that with its traceback and send no reason."""
    if decode is None:
        return None

    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _Undecodable()

    return decoded


def _checked(request: Any) -> Any:
    """Raises:
    InvalidArgument: the request could not be decoded.
    """
    if isinstance(request, _Undecodable):
        raise errors.InvalidArgument("request", "is not a message of the method's type, or holds text that is not UTF-8")
    return request


async def _each_checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


def _guard_unary(call: Any, method: str) -> Any:
    async def guarded(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await call(_checked(request), context)
        except asyncio.CancelledError:
            await _check_cancelled(context)
            raise
        except Exception as error:  # noqa: BLE001  # reported in full by _abort
            await _abort(context, error, method)

    return guarded


def _guard_stream(call: Any, method: str, *, requests: bool = False) -> Any:
    """Guards a method that answers with a stream.

    Args:
        call: the method.
        method: its name.
        requests: its requests are a stream, too.
    """

    async def guarded(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in call(_each_checked(request) if requests else _checked(request), context):
                yield response
        except asyncio.CancelledError:
            await _check_cancelled(context)
            raise
        except Exception as error:  # noqa: BLE001  # reported in full by _abort
            await _abort(context, error, method)

    return guarded


async def _check_cancelled(context: aio.ServicerContext[Any, Any]) -> None:
    """Ends the call with UNAVAILABLE if it was not the caller that cancelled it: the caller would wait for ever."""
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the call was cancelled on the server")


async def _abort(context: aio.ServicerContext[Any, Any], error: Exception, method: str) -> None:
    if isinstance(error, aio.AbortError | aio.UsageError):
        raise error
    await context.abort(*to_status(error, method), trailing_metadata(error))
