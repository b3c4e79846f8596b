"""Asks every call for an API key, and notes whose it is."""

from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar
from typing import Any

import grpc
from grpc import aio

from pbkv_cluster.core.errors import PbkvError, PermissionDenied, Unauthenticated
from pbkv_cluster.core.security.caller import note_caller
from pbkv_cluster.core.security.headers import api_key_of
from pbkv_cluster.core.security.keyring import Keyring

# Whoever asks for it, such as Kubernetes, has no key; it says nothing but whether this serves, and holds nothing open.
_HEALTH = "/grpc.health.v1.Health/Check"

_check: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)


def check_again() -> None:
    """Looks up the API key of the present call again, for what it begins long after its own beginning, and notes the caller.

    Raises:
        Unauthenticated: the key is nobody's any more.
        PermissionDenied: it is that of a tenant now, and only operators may make the call.
    """
    if (check := _check.get()) is not None:
        check()


class AuthenticationInterceptor(aio.ServerInterceptor):
    """Refuses a call before its request is read: with UNAUTHENTICATED, or PERMISSION_DENIED if only operators may make it."""

    def __init__(self, keyring: Keyring, for_tenants: Collection[str]) -> None:
        """Args:
        keyring: knows the keys.
        for_tenants: methods that tenants may call, as /package.Service/Method; looked at when a call arrives.
        """
        self._keyring = keyring
        self._for_tenants = for_tenants

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        method = handler_call_details.method
        if method == _HEALTH:
            return await continuation(handler_call_details)
        headers = {name: value for name, value in handler_call_details.invocation_metadata or () if isinstance(value, str)}
        api_key = api_key_of(headers)

        def check() -> None:
            caller = self._keyring.caller(api_key)
            if method not in self._for_tenants:
                caller.check_operator(method)
            note_caller(caller)  # gRPC handles each call in a task of its own, this part included

        try:
            check()
        except PbkvError as error:
            return _refusal(error)
        _check.set(check)
        return await continuation(handler_call_details)


def _refusal(error: PbkvError) -> "grpc.RpcMethodHandler[Any, Any]":
    assert isinstance(error, Unauthenticated | PermissionDenied)
    known = isinstance(error, PermissionDenied)
    status = grpc.StatusCode.PERMISSION_DENIED if known else grpc.StatusCode.UNAUTHENTICATED

    async def refuse(requests: Any, context: aio.ServicerContext[Any, Any]) -> None:
        await context.abort(status, str(error))

    # For every kind of method: a call with one request is one whose stream has one.
    return grpc.stream_stream_rpc_method_handler(refuse)
