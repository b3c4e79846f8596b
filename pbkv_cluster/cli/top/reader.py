"""What `pbkv top` shows: asked of the gateway and the predictor, again and again."""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from grpc import aio

from pbkv_cluster.cli.operation.workflows import summary_json
from pbkv_cluster.cli.serving.status import status_json
from pbkv_cluster.client import AsyncClient
from pbkv_cluster.client.inspection import InspectionClient
from pbkv_cluster.client.operator_connection import typed_errors
from pbkv_cluster.core.errors import DeadlineExceeded, PbkvError, Unavailable
from pbkv_cluster.rpc.channel import connect
from pbkv_cluster.rpc.v1 import inspection_pb2, predictor_pb2, predictor_pb2_grpc

WORKFLOWS = 50  # that are shown
_TIMEOUT_S = 10.0  # of one look
_EXPLAIN_TIMEOUT_S = 3.0
_NEXT = 2  # agents that are named


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment, as JSON values."""

    status: dict[str, Any]  # as `pbkv status --json` writes it
    workflows: list[dict[str, Any]] = field(default_factory=list)  # as `pbkv workflows ls`, with what is expected `next`

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "workflows": self.workflows}


class Reader:
    """Connections to a cluster, which come back by themselves. A context manager that closes them."""

    def __init__(self, endpoint: str) -> None:
        """Raises:
        InvalidArgument: `endpoint` is no host:port.
        """
        self._client = AsyncClient(endpoint, timeout_s=_TIMEOUT_S)
        self._inspection = InspectionClient(endpoint)
        self._predictor = ""  # address
        self._channel: aio.Channel | None = None
        self._known: dict[str, tuple[object, dict[str, float]]] = {}  # by workflow: what it was like, and what was expected

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()
        await self._inspection.close()
        if self._channel is not None:
            await self._channel.close()

    async def read(self) -> Snapshot:
        """Raises:
        Unavailable: the gateway does not answer.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                status = await self._client.status()
                listed = (await self._inspection.workflows(limit=WORKFLOWS)).workflows
                await self._find(status.predictor_address)
                expected = await asyncio.gather(*map(self._next, listed))
        except (TimeoutError, DeadlineExceeded):
            raise Unavailable(f"the gateway has not answered for {_TIMEOUT_S:g} s") from None
        names = {each.workflow_id for each in listed}
        self._known = {name: known for name, known in self._known.items() if name in names}
        workflows = [{**summary_json(each), "next": after} for each, after in zip(listed, expected, strict=True)]
        return Snapshot(status_json(status), workflows)

    async def _find(self, predictor: str) -> None:
        if predictor != self._predictor:
            if self._channel is not None:
                await self._channel.close()
            self._predictor = predictor
            self._channel = connect(predictor) if predictor else None

    async def _next(self, workflow: inspection_pb2.WorkflowSummary) -> dict[str, float]:
        """The likeliest next agents of a workflow; asked only if it has gone on since."""
        moment = workflow.steps, workflow.running_steps, workflow.tool
        known = self._known.get(workflow.workflow_id)
        if known is None or known[0] != moment:
            expected = await self._explain(workflow.workflow_id)
            if expected is None:
                return {}
            known = self._known[workflow.workflow_id] = moment, expected
        return known[1]

    async def _explain(self, workflow: str) -> dict[str, float] | None:
        """None: there is no predictor, or it does not know the workflow yet."""
        if self._channel is None:
            return None
        stub = predictor_pb2_grpc.PredictorServiceStub(self._channel)
        try:
            with typed_errors():
                answer = await stub.Explain(predictor_pb2.ExplainRequest(workflow_id=workflow), timeout=_EXPLAIN_TIMEOUT_S)
        except PbkvError:
            return None  # the status tells whether it is reachable; that it has not heard of a workflow yet is no error
        first = answer.steps[0].agents[:_NEXT] if answer.steps else ()
        return {agent.agent_id: agent.probability for agent in first if agent.probability > 0}
