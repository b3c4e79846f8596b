"""One request: whose step it is, which engine gets it, and what its answer teaches."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response

from pbkv_cluster.core.errors import InvalidArgument, NotFound, ResourceExhausted
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.http.sessions.hints import answer_headers
from pbkv_cluster.gateway.http.sessions.sessions import Attribution, Sessions
from pbkv_cluster.gateway.http.wire.body import BodyReader, check_json
from pbkv_cluster.gateway.http.wire.problems import BadGateway
from pbkv_cluster.gateway.http.wire.replies import until_gone
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflows
from pbkv_cluster.integrations.sidecar.engines.engine import Engine
from pbkv_cluster.integrations.sidecar.engines.placement import Placed, Placement
from pbkv_cluster.integrations.sidecar.engines.prompts import PromptReader
from pbkv_cluster.integrations.sidecar.engines.upstream import KEY_HEADERS, EngineAway, Incoming, NoAnswer, Outgoing
from pbkv_cluster.integrations.sidecar.in_flight import InFlight
from pbkv_cluster.integrations.sidecar.reading.answers import AnswerReader, Told
from pbkv_cluster.integrations.sidecar.reading.asked import Asked, Kind, read_request
from pbkv_cluster.integrations.sidecar.relayed import Relayed, is_event_stream
from pbkv_cluster.integrations.sidecar.workflow.forecasts import ForecastBook
from pbkv_cluster.integrations.sidecar.workflow.hints import HintedStep, HintWriter, cache_salt
from pbkv_cluster.integrations.sidecar.workflow.steps import Outcome, PassingStep, Steps
from pbkv_cluster.rpc.security import this_process

log = logging.getLogger(__name__)

ENGINE = "x-pbkv-engine"  # header of answers
_TRY_ANOTHER = (502, 503)  # statuses of an engine, or of what is in front of it, that cannot serve now
_IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")  # RFC 9110, 9.2.2
_ON_THREAD_BYTES = 64 << 10  # bodies from this size on are read on a thread
_MAX_RESPONSES = 65_536  # whose engine is remembered


@dataclass(slots=True)
class _Tries:
    """Of one request."""

    may_repeat: bool  # once, though an engine may have it already: steps change nothing but caches
    engines: list[Engine] = field(default_factory=list)


@dataclass(slots=True)
class Proxy:
    """Passes requests on to engines and their answers back."""

    bodies: BodyReader
    sessions: Sessions
    workflows: OpenWorkflows
    prompts: PromptReader
    placement: Placement
    steps: Steps
    forecasts: ForecastBook
    hints: HintWriter
    decisions: Decisions
    in_flight: InFlight
    passed: int = 0  # requests that are no steps
    _homes: OrderedDict[str, Engine] = field(default_factory=OrderedDict)  # of responses that later requests may refer to

    async def step(self, request: Request, kind: Kind) -> Response:
        """A request whose answer is a step of a workflow.

        Raises:
            PbkvError: the request cannot be passed on, or no engine answers it.
            ClientGone: the client went away.
        """
        check_json(request)
        body = await self.bodies.read_any(request)
        with self._admitted(len(body)) as admitted:
            return await self._step(request, kind, body, admitted)

    async def other(self, request: Request) -> Response:
        """Any other request, as it is.

        Raises:
            PbkvError: no engine answers it.
            ClientGone: the client went away.
        """
        body = await self.bodies.read_any(request)
        with self._admitted(len(body)) as admitted:
            return await self._pass(request, body, self._home(request.path_params.get("response", "")), admitted)

    @contextmanager
    def _admitted(self, size_bytes: int) -> Iterator[object]:
        """Lets a request in. If it is answered, the end of its answer has to release it.

        Raises:
            ResourceExhausted: too many are in flight, or they are too large.
        """
        admitted = object()
        self.in_flight.admit(admitted, size_bytes)
        try:
            yield admitted
        except BaseException:
            self.in_flight.release(admitted)
            raise

    async def _step(self, request: Request, kind: Kind, body: bytes, admitted: object) -> Response:
        headers = dict(request.headers)
        if len(body) < _ON_THREAD_BYTES:
            asked = read_request(kind, body, headers)
        else:
            asked = await asyncio.to_thread(read_request, kind, body, headers)
        step = await self._begin(asked)
        if step is None:
            return await self._pass(request, body, self._home(asked.previous_response), admitted)
        try:
            answer = await until_gone(request.receive, self._ask(request, body, step))
        except BaseException as error:
            await self._end(step, Outcome.FAILED if isinstance(error, Exception) else Outcome.CANCELLED, Told())
            raise
        reader = AnswerReader(kind, streamed=is_event_stream(answer))

        def on_piece(piece: bytes) -> None:
            reader.push(piece)
            if reader.has_begun:
                self.steps.output_began(step)

        async def on_end(outcome: Outcome) -> None:
            self.in_flight.release(admitted)
            await self._end(step, outcome, reader.finish())

        assert step.placed is not None, "an engine has answered"
        told = answer_headers(step.workflow.id, step.attribution.agent, step.number)
        return Relayed(answer, on_piece, on_end, {**told, ENGINE: step.placed.engine.name})

    async def _pass(self, request: Request, body: bytes, home: Engine | None, admitted: object) -> Response:
        self.passed += 1

        async def ask() -> tuple[Incoming, Engine]:
            tries = _Tries(may_repeat=request.method in _IDEMPOTENT)
            while True:
                engine = home if home is not None and not tries.engines else self.placement.live(tries.engines)[0]
                answer = await self._send(engine, _outgoing(request, body), tries)
                if answer is not None:
                    return answer, engine

        answer, engine = await until_gone(request.receive, ask())

        async def on_end(outcome: Outcome) -> None:
            self.in_flight.release(admitted)

        return Relayed(answer, lambda piece: None, on_end, {ENGINE: engine.name})

    async def _begin(self, asked: Asked) -> PassingStep | None:
        """The request as a step; None: it cannot be one, and is passed on all the same."""
        if not (asked.messages or asked.text or asked.packed):
            return None
        try:
            attribution = await self.sessions.attribute(asked.hints, asked.messages, asked.text, asked.tools)
        except ResourceExhausted as error:
            log.warning("a request is passed on without a workflow: %s", error, extra={"reason": Reason.WORKFLOW_REFUSED})
            return None
        prompt = await self.prompts.read(asked, asked.cache_salt or self._salt(asked))
        workflow = self.workflows.get(attribution.workflow)
        if workflow is None:
            raise NotFound(f"workflow {attribution.workflow!r} has ended")
        return self.steps.begin(asked, attribution, workflow, prompt)

    def _salt(self, asked: Asked) -> str:
        """The salt that engines will get; those that get none are compared by another key, and their loss is small."""
        salted = any("cache_salt" in engine.config.hints for engine in self.placement.reachable())
        return (cache_salt(asked) or "") if salted else ""

    async def _ask(self, request: Request, body: bytes, step: PassingStep) -> Incoming:
        """The answer of the engine that serves the step: if one cannot, of another."""
        tries = _Tries(may_repeat=True)
        workflow, agent, asked = step.workflow, step.attribution.agent, step.asked
        while True:
            if (home := self._home(asked.previous_response)) is not None and not tries.engines:
                placed = Placed(home, 0)
            else:
                weight = self.forecasts.weight(workflow.id)
                placed = self.placement.choose(
                    step.prompt, workflow.id, step.attribution.agent, workflow.last_worker, weight, tries.engines
                )
            self.steps.place(step, placed)
            engine = placed.engine
            hinted = HintedStep(workflow.id, agent, self.forecasts.of(workflow.id))
            outgoing = _outgoing(request, self.hints.body(body, asked, engine.config, hinted))
            answer = await self._send(engine, outgoing, tries)
            if answer is not None:
                return answer
            self.decisions[Reason.STEP_RETRIED] += 1

    async def _send(self, engine: Engine, outgoing: Outgoing, tries: _Tries) -> Incoming | None:
        """The answer of an engine; None: it cannot serve now, and another one can be asked.

        Raises:
            BadGateway: it was not reached, and there is no other; or it may have the request, which must not be repeated.
            DeadlineExceeded: it has not answered in time.
        """
        tries.engines.append(engine)
        try:
            answer = await engine.upstream.send(outgoing)
        except EngineAway as error:
            engine.lost(str(error))
            self.decisions[Reason.WORKER_LOST] += 1
            if not self._others(tries.engines):
                raise BadGateway(str(error)) from error
            return None
        except NoAnswer as error:
            # One request that kills its server must not go through all of them.
            if not tries.may_repeat or not self._others(tries.engines):
                raise BadGateway(str(error)) from error
            tries.may_repeat = False
            return None
        if answer.status in _TRY_ANOTHER and self._others(tries.engines):
            await answer.close()
            self.decisions[Reason.WORKER_REFUSED] += 1
            return None
        return answer

    def _others(self, tried: Collection[Engine]) -> bool:
        return any(engine not in tried for engine in self.placement.reachable())

    def _home(self, response: str) -> Engine | None:
        """The engine that keeps a response, if it answers."""
        home = self._homes.get(response)
        return home if home is not None and home.is_live else None

    async def _end(self, step: PassingStep, outcome: Outcome, told: Told) -> None:
        self.steps.end(step, outcome, told)
        attribution = step.attribution
        if outcome is Outcome.FINISHED:
            if told.response_id and step.placed is not None:
                self._homes[told.response_id] = step.placed.engine
                if len(self._homes) > _MAX_RESPONSES:
                    self._homes.popitem(last=False)
            await self.sessions.answered(attribution, told.text, [call for call in told.calls if call.name])
        await self._over(step, attribution, outcome)

    async def _over(self, step: PassingStep, attribution: Attribution, outcome: Outcome) -> None:
        await self.sessions.over(step.asked.hints, attribution)
        if outcome is Outcome.FAILED and attribution.opened and step.workflow.steps == 1:
            with suppress(NotFound):  # it has ended
                await self.sessions.end(attribution.workflow)


def _outgoing(request: Request, body: bytes) -> Outgoing:
    target: bytes = request.scope["raw_path"]
    # A proxy on the way to the engine, or the engine, may take such a path for another one, that operators alone may use.
    if not {".", ".."}.isdisjoint(unquote(target.decode("latin-1")).split("/")):
        raise InvalidArgument("path", "must have no segment that is . or ..")
    if query := request.scope["query_string"]:
        target += b"?" + query
    headers = request.headers.raw
    if this_process().keyring is not None:  # the key is one of the sidecar's, and no engine's business
        headers = [(name, value) for name, value in headers if name.lower() not in KEY_HEADERS]
    return Outgoing(request.method, target, headers, body)
