"""One path of the HTTP API."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from pbkv_cluster.core.security.caller import note_caller
from pbkv_cluster.core.security.headers import api_key_of
from pbkv_cluster.gateway.http.wire.problems import Problem, problem_of
from pbkv_cluster.gateway.http.wire.replies import ClientGone, json_reply
from pbkv_cluster.gateway.http.wire.schemas import TEXT, Schema, or_null, record
from pbkv_cluster.rpc.security import this_process

REQUEST_IDS = ("x-request-id", "request-id")  # OpenAI's and Anthropic's
ErrorShape = Callable[[Problem, str], Any]  # the problem and the request's id to the body of an answer


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an API writes errors."""

    error: ErrorShape
    error_schema: Schema


def openai_error(problem: Problem, request_id: str) -> Any:
    """An error as OpenAI's API writes it."""
    return {"error": {"message": problem.message, "type": problem.type, "param": problem.param, "code": problem.code}}


OPENAI = Dialect(openai_error, record(error=record(message=TEXT, type=TEXT, param=or_null(TEXT), code=or_null(TEXT))))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path, what serves it, and what the OpenAPI document says of it."""

    method: str
    path: str
    summary: str
    serve: Callable[[Request], Awaitable[Response]]
    answer: Schema
    body: type[BaseModel] | None = None  # None: it takes none
    problems: tuple[int, ...] = ()  # statuses of errors, beside those that follow from all else
    streams: bool = False  # it can answer with server-sent events
    dialect: Dialect = OPENAI
    parameters: tuple[str, ...] = ()  # in the path
    headers: tuple[str, ...] = ()  # that it reads, where it does not stream; one that does reads all
    needs_key: bool = True  # where API keys are asked for
    answer_statuses: tuple[int, ...] = (200,)

    def route(self) -> Route:
        """For Starlette; errors are answered in the dialect's shape."""
        return Route(self.path, self._guarded, methods=[self.method])

    async def _guarded(self, request: Request) -> Response:
        request_id = new_request_id()
        try:
            if self.needs_key and (keyring := this_process().keyring) is not None:
                note_caller(keyring.caller(api_key_of(request.headers)))
            reply = await self.serve(request)
        except (ClientGone, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it
        except Exception as error:  # noqa: BLE001  # `problem_of` logs what is a defect
            reply = error_reply(error, self.dialect.error, request_id)
        return with_request_id(reply, request_id)


def new_request_id() -> str:
    """An id by which an answer can be told from others."""
    return f"req_{secrets.token_hex(12)}"


def with_request_id(reply: Response, request_id: str) -> Response:
    """The answer, in whose headers both APIs find its id."""
    for name in REQUEST_IDS:
        reply.headers[name] = request_id
    return reply


def error_reply(error: Exception, shape: ErrorShape, request_id: str) -> Response:
    """An error as an answer."""
    problem = problem_of(error)
    return json_reply(shape(problem, request_id), problem.status, problem.headers)
