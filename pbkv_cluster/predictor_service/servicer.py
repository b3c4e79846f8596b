"""`PredictorService` of the wire contract, around the plain objects."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from grpc import aio

from pbkv_cluster.core.forecasts.forecast import StepForecast
from pbkv_cluster.predictor_service.access.learner import AccessLearner
from pbkv_cluster.predictor_service.broadcast.subscription import Batch
from pbkv_cluster.predictor_service.predictor.explanation import Explanation
from pbkv_cluster.predictor_service.service import PredictorService, Reported
from pbkv_cluster.rpc.access_logs import logs_from_wire
from pbkv_cluster.rpc.convert import event_from_wire, forecasts_to_wire
from pbkv_cluster.rpc.v1 import predictor_pb2, predictor_pb2_grpc

MESSAGE_FORECASTS = 4096  # in one message: well under the size limit of a channel, however long the names are


class PredictorServicer(predictor_pb2_grpc.PredictorServiceServicer):
    """Calls the service and the access learner."""

    def __init__(self, service: PredictorService, learner: AccessLearner) -> None:
        self._service = service
        self._learner = learner

    async def ReportEvents(  # noqa: N802
        self, request: predictor_pb2.ReportEventsRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ReportEventsResponse:
        reported = self._report(request)
        return predictor_pb2.ReportEventsResponse(
            accepted=reported.accepted, ignored=reported.ignored, instance=self._service.instance
        )

    async def StreamEvents(  # noqa: N802
        self, requests: AsyncIterator[predictor_pb2.ReportEventsRequest], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[predictor_pb2.ReportEventsResponse]:
        totals = predictor_pb2.ReportEventsResponse(instance=self._service.instance)
        async for request in requests:
            try:
                reported = self._report(request)
            except Exception:
                yield totals  # so that the sender knows which request failed
                raise
            totals.accepted += reported.accepted
            totals.ignored += reported.ignored
            if not request.events:  # an empty request asks for the totals
                yield totals

    async def WatchForecasts(  # noqa: N802
        self, request: predictor_pb2.WatchForecastsRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[predictor_pb2.ForecastBatch]:
        subscription = self._service.subscribe(request.subscriber or context.peer(), request.placed_only)
        if request.access_model:
            self._learner.feed(subscription)
        # Not in a `finally`: if a call is cancelled while it writes, its generator ends only when it is garbage-collected.
        context.add_done_callback(lambda _: subscription.close())  # type: ignore[arg-type]  # the stubs want a class here
        async for batch in subscription:
            for message in _messages(batch):
                yield message

    async def Predict(  # noqa: N802
        self, request: predictor_pb2.PredictRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ForecastBatch:
        return forecasts_to_wire(self._service.predict(request.workflow_ids))

    async def Explain(  # noqa: N802
        self, request: predictor_pb2.ExplainRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ExplainResponse:
        return _explanation_to_wire(self._service.explain(request.workflow_id))

    async def ReportAccess(  # noqa: N802
        self, request: predictor_pb2.ReportAccessRequest, context: aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ReportAccessResponse:
        taken = self._learner.report(logs_from_wire(request.logs))
        return predictor_pb2.ReportAccessResponse(accepted=taken.accepted, dropped=taken.dropped)

    def _report(self, request: predictor_pb2.ReportEventsRequest) -> Reported:
        return self._service.report([event_from_wire(event) for event in request.events])


def _explanation_to_wire(explanation: Explanation) -> predictor_pb2.ExplainResponse:
    return predictor_pb2.ExplainResponse(
        workload=explanation.workload,
        steps_begun=explanation.begun,
        output_known=explanation.output_known,
        predictability=explanation.predictability,
        steps=map(_step_to_wire, explanation.steps),
        experts=[
            predictor_pb2.ExplainResponse.Expert(
                name=opinion.expert, weights=opinion.weights, steps=map(_step_to_wire, opinion.steps)
            )
            for opinion in explanation.opinions
        ],
    )


def _step_to_wire(step: StepForecast) -> predictor_pb2.ExplainResponse.Step:
    likeliest = sorted(step.agents.items(), key=lambda item: item[1], reverse=True)
    agents = [predictor_pb2.ExplainResponse.Agent(agent_id=agent, probability=each) for agent, each in likeliest]
    return predictor_pb2.ExplainResponse.Step(agents=agents, survival=step.survival)


def _messages(batch: Batch) -> Iterator[predictor_pb2.ForecastBatch]:
    # Only the first message of a snapshot is marked as one: on it the receiver forgets everything, and the others add to it.
    for start in range(0, max(1, len(batch.forecasts)), MESSAGE_FORECASTS):
        message = forecasts_to_wire(batch.forecasts[start : start + MESSAGE_FORECASTS], snapshot=batch.snapshot and start == 0)
        if start + MESSAGE_FORECASTS >= len(batch.forecasts):
            message.access_model = batch.access
        yield message
