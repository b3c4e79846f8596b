"""The paths of the HTTP API, and the application that serves them."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pbkv_cluster.core.workflow.tenant_ids import of_tenant
from pbkv_cluster.gateway.http.anthropic.answers import MESSAGE, TOKEN_COUNT
from pbkv_cluster.gateway.http.anthropic.errors import ANTHROPIC
from pbkv_cluster.gateway.http.anthropic.messages import Messages
from pbkv_cluster.gateway.http.anthropic.messages_request import CountRequest, MessagesRequest
from pbkv_cluster.gateway.http.generation.answering import Answering
from pbkv_cluster.gateway.http.generation.counting import Counter
from pbkv_cluster.gateway.http.generation.generation import Generations
from pbkv_cluster.gateway.http.openai import answers
from pbkv_cluster.gateway.http.openai.chat import ChatCompletions
from pbkv_cluster.gateway.http.openai.chat_request import ChatRequest
from pbkv_cluster.gateway.http.openai.completions import CompletionRequest, Completions
from pbkv_cluster.gateway.http.openai.responses import Responses
from pbkv_cluster.gateway.http.openai.responses_request import ResponsesRequest
from pbkv_cluster.gateway.http.openai.served_model import ServedModel, list_json
from pbkv_cluster.gateway.http.openai.tokenize import Tokenize, TokenizeRequest
from pbkv_cluster.gateway.http.prefetch import PREFETCHED, AskCaches, Prefetch, PrefetchBody
from pbkv_cluster.gateway.http.sessions.hints import AGENT, TENANT, WORKFLOW, read_hints
from pbkv_cluster.gateway.http.sessions.sessions import Sessions
from pbkv_cluster.gateway.http.wire.body import Body, BodyReader
from pbkv_cluster.gateway.http.wire.endpoint import OPENAI, Dialect, Endpoint, new_request_id, with_request_id
from pbkv_cluster.gateway.http.wire.openapi import document
from pbkv_cluster.gateway.http.wire.problems import Problem
from pbkv_cluster.gateway.http.wire.replies import json_reply
from pbkv_cluster.gateway.http.wire.schemas import COUNT, TEXT, Schema, one_of, record
from pbkv_cluster.gateway.routing.worker_pool import WorkerPool
from pbkv_cluster.gateway.step.admission.counted_prompts import CountedPrompts

_HEALTH = record(status=TEXT, workers=COUNT)
_OF_ANTHROPIC = "/v1/messages"  # how the paths begin that only its API has


@dataclass(frozen=True, slots=True)
class _Service:
    """What is served beside the models' answers."""

    model: ServedModel
    pool: WorkerPool
    sessions: Sessions

    async def health(self, request: Request) -> Response:
        """200 while a worker is reachable."""
        workers = len(self.pool.live())
        return json_reply(
            {"status": "ok" if workers else "no worker is reachable", "workers": workers}, 200 if workers else 503
        )

    async def models(self, request: Request) -> Response:
        return json_reply(list_json([self._model()]))

    async def one_model(self, request: Request) -> Response:
        self.model.check(request.path_params["model"])
        return json_reply(self._model())

    async def end_workflow(self, request: Request) -> Response:
        workflow = request.path_params["workflow"]
        await self.sessions.end(of_tenant(workflow, read_hints(request.headers).tenant))
        return json_reply({"id": workflow, "object": "workflow.ended"})

    def _model(self) -> dict[str, Any]:
        limits = self.pool.limits()
        return self.model.to_json(None if limits is None else limits.max_context_tokens)


def make_app(
    generations: Generations,
    prompts: CountedPrompts,
    bodies: BodyReader,
    model: ServedModel,
    pool: WorkerPool,
    prefetch: AskCaches,
) -> tuple[Starlette, dict[str, Any]]:
    """The application, and its OpenAPI document."""
    service = _Service(model, pool, generations.sessions)
    answering = Answering(generations)
    counter = Counter(prompts)
    chat = ChatCompletions(answering, bodies, model)
    completions = Completions(answering, bodies, model)
    responses = Responses(answering, bodies, model)
    messages = Messages(answering, counter, generations.tools, bodies, model)
    tokenize = Tokenize(counter, generations.tools, bodies, model)
    prefetches = Prefetch(counter, generations.tools, bodies, model, prefetch)
    described: dict[str, Any] = {}

    async def openapi(request: Request) -> Response:
        return json_reply(described)

    endpoints = [
        Endpoint(
            "GET",
            "/health",
            "Whether steps can be served",
            service.health,
            _HEALTH,
            needs_key=False,
            answer_statuses=(200, 503),
        ),
        Endpoint("GET", "/openapi.json", "This document", openapi, record(openapi=TEXT, paths=record())),
        Endpoint("GET", "/v1/models", "The model", service.models, answers.MODELS),
        Endpoint(
            "GET", "/v1/models/{model}", "The model", service.one_model, answers.MODEL, problems=(404,), parameters=("model",)
        ),
        _steps("/v1/chat/completions", "Answers a conversation", chat.serve, answers.CHAT_COMPLETION, ChatRequest),
        _steps("/v1/completions", "Goes on with a text", completions.serve, answers.COMPLETION, CompletionRequest),
        _steps("/v1/responses", "Answers a conversation", responses.serve, answers.RESPONSE, ResponsesRequest),
        _steps(
            "/v1/messages",
            "Answers a conversation, as Anthropic's API",
            messages.serve,
            MESSAGE,
            MessagesRequest,
            ANTHROPIC,
        ),
        Endpoint(
            "POST",
            "/v1/messages/count_tokens",
            "Tokens of a conversation, as Anthropic's API",
            messages.count,
            TOKEN_COUNT,
            CountRequest,
            problems=(404, 503),
            dialect=ANTHROPIC,
        ),
        Endpoint(
            "POST", "/tokenize", "Tokens of a prompt", tokenize.serve, answers.TOKENS, TokenizeRequest, problems=(404, 503)
        ),
        Endpoint(
            "POST",
            "/v1/prefetch",
            "Loads what is cached of a prompt, or of a workflow, before its step",
            prefetches.serve,
            PREFETCHED,
            PrefetchBody,
            problems=(404, 429, 503, 504),
            headers=(WORKFLOW, AGENT, TENANT),
        ),
        Endpoint(
            "DELETE",
            "/v1/workflows/{workflow}",
            "Ends a workflow",
            service.end_workflow,
            record(id=TEXT, object=one_of("workflow.ended")),
            problems=(400, 404, 503),
            parameters=("workflow",),
            headers=(TENANT,),
        ),
    ]
    described |= document(endpoints)
    return _application(endpoints), described


def _steps(
    path: str,
    summary: str,
    serve: Callable[[Request], Awaitable[Response]],
    answer: Schema,
    body: type[Body],
    dialect: Dialect = OPENAI,
) -> Endpoint:
    """A path whose requests become steps."""
    problems = (404, 422, 429, 503, 504)
    return Endpoint("POST", path, summary, serve, answer, body, streams=True, problems=problems, dialect=dialect)


def _application(endpoints: Sequence[Endpoint]) -> Starlette:
    return Starlette(
        routes=[endpoint.route() for endpoint in endpoints],
        exception_handlers={HTTPException: _http_error},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """An unknown path, or a path with another method."""
    assert isinstance(error, HTTPException)
    path, request_id = request.url.path, new_request_id()
    problem = Problem(error.status_code, "invalid_request_error", f"{request.method} {path}: {error.detail}")
    dialect = ANTHROPIC if path.startswith(_OF_ANTHROPIC) else OPENAI
    return with_request_id(json_reply(dialect.error(problem, request_id), error.status_code, error.headers), request_id)
