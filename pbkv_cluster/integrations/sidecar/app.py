"""The paths of the sidecar. What an engine serves below /v1 goes to an engine; its paths for operators do not."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from pbkv_cluster import __version__
from pbkv_cluster.core.errors import NotFound
from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.figures import CONTENT_TYPE, Figures
from pbkv_cluster.core.security.caller import current_caller, note_caller
from pbkv_cluster.core.security.headers import api_key_of
from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from pbkv_cluster.gateway.http.sessions.hints import read_hints
from pbkv_cluster.gateway.http.wire.endpoint import error_reply, openai_error
from pbkv_cluster.gateway.http.wire.problems import Problem
from pbkv_cluster.gateway.http.wire.replies import ClientGone, json_reply
from pbkv_cluster.integrations.sidecar.figures import SidecarFigures
from pbkv_cluster.integrations.sidecar.proxy import Proxy
from pbkv_cluster.integrations.sidecar.reading.asked import Kind
from pbkv_cluster.integrations.sidecar.status import SidecarStatus
from pbkv_cluster.rpc.security import this_process

STATUS_PATH = "/pbkv/status"
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# Paths of vLLM and SGLang beside /v1 that clients use. Others sleep, wake, flush or reload an engine.
_ALONGSIDE = ("/tokenize", "/detokenize", "/version", "/rerank", "/score", "/pooling")
# Paths below /v1 that change what an engine serves.
_OPERATORS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")

Serve = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _Service:
    """What the sidecar answers itself."""

    proxy: Proxy
    figures: SidecarFigures
    status: SidecarStatus

    async def health(self, request: Request) -> Response:
        """200 while an engine answers."""
        engines = len(self.proxy.placement.reachable())
        told = {"status": "ok" if engines else "no engine answers", "engines": engines}
        return json_reply(told, 200 if engines else 503)

    async def metrics(self, request: Request) -> Response:
        if not this_process().open_metrics:
            current_caller().check_operator(f"GET {request.url.path}")
        figures = Figures()
        figures.put(names.BUILD_INFO, 1, __version__)
        self.figures.put(figures)
        figures.put_process()
        return Response(figures.text(), media_type=CONTENT_TYPE)

    async def tell_status(self, request: Request) -> Response:
        current_caller().check_operator(f"GET {request.url.path}")
        return json_reply(self.status.to_json())

    async def end_workflow(self, request: Request) -> Response:
        workflow = request.path_params["workflow"]
        await self.proxy.sessions.end(of_tenant(workflow, read_hints(request.headers).tenant))
        return json_reply({"id": workflow, "object": "workflow.ended"})


def make_app(proxy: Proxy, figures: SidecarFigures, status: SidecarStatus) -> Starlette:
    """The application."""
    service = _Service(proxy, figures, status)
    own = [
        _route("/health", service.health, ["GET"], needs_key=False),
        _route("/metrics", service.metrics, ["GET"], needs_key=not this_process().open_metrics),
        _route(STATUS_PATH, service.tell_status, ["GET"]),
        _route("/v1/workflows/{workflow}", service.end_workflow, ["DELETE"]),
    ]
    refused = [_route(path + end, _refuse, _METHODS) for path in _OPERATORS for end in ("", "/")]
    steps = [_route(kind.value, partial(proxy.step, kind=kind), ["POST"]) for kind in Kind]
    others = ["/v1/responses/{response}", "/v1/responses/{response}/{rest:path}", "/v1/{rest:path}", *_ALONGSIDE]
    passed = [_route(path, proxy.other, _METHODS) for path in others]
    return Starlette(routes=[*own, *refused, *steps, *passed], exception_handlers={HTTPException: _http_error})


async def _refuse(request: Request) -> Response:
    raise NotFound(f"{request.url.path} is for the engine's operators, and not passed on")


def _route(path: str, serve: Serve, methods: list[str], needs_key: bool = True) -> Route:
    async def guarded(request: Request) -> Response:
        try:
            if needs_key and (keyring := this_process().keyring) is not None:
                note_caller(keyring.caller(api_key_of(request.headers)))
            return await serve(request)
        except (ClientGone, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it
        except Exception as error:  # noqa: BLE001  # `problem_of` logs what is a defect
            return error_reply(error, openai_error, f"req_{secrets.token_hex(12)}")

    return Route(path, guarded, methods=methods)


async def _http_error(request: Request, error: Exception) -> Response:
    """An unknown path, or a path with another method."""
    assert isinstance(error, HTTPException)
    problem = Problem(error.status_code, "invalid_request_error", f"{request.method} {request.url.path}: {error.detail}")
    shown: Any = openai_error(problem, "")
    return json_reply(shown, error.status_code, error.headers)
