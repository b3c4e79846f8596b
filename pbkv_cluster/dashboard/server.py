"""The pages and their data over HTTP."""

import asyncio
import contextlib
import json
import logging
import math
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import InvalidArgument, NotFound, PbkvError, PermissionDenied, StartupError, Unauthenticated
from pbkv_cluster.core.locations.addresses import join_address
from pbkv_cluster.core.security.headers import BROWSER_CHALLENGE, api_key_of
from pbkv_cluster.dashboard import series
from pbkv_cluster.dashboard.collector import Collector
from pbkv_cluster.dashboard.history import History
from pbkv_cluster.dashboard.viewers import MOST, Viewers
from pbkv_cluster.rpc.security import this_process

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
MAX_RANGE_S = 30 * 86_400.0
_POINTS = 240  # of a chart
_CHARTS_S = 4.0  # for which charts are given to all who ask for the same range: as long as a page waits to ask again
_STOP_S = 1.0
# Everything comes from here; uPlot sets styles from its script, which this allows.
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
_STATUS: dict[type[PbkvError], int] = {InvalidArgument: 400, NotFound: 404}  # anything else: 503


class DashboardServer:
    """One port that serves until it is stopped."""

    def __init__(self, collector: Collector, viewers: Viewers, history: History, clock: Clock) -> None:
        """Args:
        collector: answers what is asked for one workflow.
        viewers: get snapshots.
        history: of the charts.
        clock: says what the last minutes are.
        """
        self._collector, self._viewers, self._history, self._clock = collector, viewers, history, clock
        self._charts: dict[float, tuple[float, bytes]] = {}
        routes = [
            Route("/", lambda _: FileResponse(STATIC / "index.html"), name="page"),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/api/events", self._events),
            Route("/api/history", self._answer_history),
            Route("/api/workflow", self._answer_workflow),
            Route("/api/block", self._answer_block),
        ]
        app = Starlette(
            routes=routes,
            middleware=[Middleware(_SafeHeaders), Middleware(_ForOperators)],
            exception_handlers={PbkvError: _refuse},
        )
        tls = this_process().tls
        config = uvicorn.Config(
            app,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            limit_concurrency=2 * MOST,
            timeout_graceful_shutdown=int(_STOP_S),
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> str:
        """Binds and serves. Port 0 takes a free one. Returns the address, host:port.

        Raises:
            StartupError: the address cannot be bound.
        """
        try:
            bound = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            where = join_address(host, port)
            raise StartupError(f"the dashboard cannot listen on {where} (dashboard.port): {error.strerror}") from error
        self._serving = asyncio.create_task(self._server.serve([bound]), name="dashboard")
        return join_address(host, bound.getsockname()[1])

    async def wait(self) -> None:
        """Runs until it fails, then raises its error."""
        assert self._serving is not None, "the server was not started"
        await asyncio.shield(self._serving)

    async def stop(self) -> None:
        """Ends all streams and stops serving."""
        self._viewers.close()
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving

    async def _events(self, request: Request) -> Response:
        if self._viewers.count >= MOST:
            return JSONResponse({"error": f"{MOST} viewers are connected already"}, 503)
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        async with contextlib.aclosing(self._viewers.follow()) as snapshots:
            async for snapshot in snapshots:
                yield snapshot

    async def _answer_history(self, request: Request) -> Response:
        text = request.query_params.get("seconds", "3600")
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= MAX_RANGE_S:
            raise InvalidArgument("seconds", f"must be a number above 0 and at most {MAX_RANGE_S:.0f}")
        return Response(self._history_json(seconds), media_type="application/json")

    def _history_json(self, seconds: float) -> bytes:
        now = self._clock.now()
        self._charts = {key: made for key, made in self._charts.items() if now - made[0] < _CHARTS_S}
        if seconds not in self._charts:
            rows = self._history.since(self._clock.wall() - seconds, _POINTS + 1)
            found = {"charts": series.charts(rows), "window": series.window(rows)}
            self._charts[seconds] = now, json.dumps(found, allow_nan=False).encode()
        return self._charts[seconds][1]

    async def _answer_workflow(self, request: Request) -> Response:
        workflow = request.query_params.get("id", "")
        if not workflow:
            raise InvalidArgument("id", "names the workflow")
        return JSONResponse(await self._collector.detail(workflow))

    async def _answer_block(self, request: Request) -> Response:
        return JSONResponse(await self._collector.block(request.query_params.get("key", "")))


class _Server(uvicorn.Server):
    """Leaves signals to the process that it is a part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _SafeHeaders:
    """Adds to every answer what keeps a browser from doing more than it should."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_more)


class _ForOperators:
    """Asks for the API key of an operator, if keys are asked for; browsers ask their users for it as a password."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._keyring = this_process().keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self._app
        if self._keyring is not None and scope["type"] == "http":
            try:
                self._keyring.caller(api_key_of(Headers(scope=scope))).check_operator("the dashboard")
            except Unauthenticated as error:
                answer = JSONResponse({"error": str(error)}, 401, {"www-authenticate": BROWSER_CHALLENGE})
            except PermissionDenied as error:
                answer = JSONResponse({"error": str(error)}, 403)
        await answer(scope, receive, send)


async def _refuse(request: Request, error: Any) -> Response:
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 503)
    return JSONResponse({"error": str(error)}, status)
