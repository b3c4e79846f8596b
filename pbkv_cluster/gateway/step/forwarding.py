"""Passes a step on to the gateway that holds its workflow, and its output back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from pbkv_cluster.core.background import check_cancelled
from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import TryAgain
from pbkv_cluster.core.workflow.resumption import Received
from pbkv_cluster.core.workflow.step_events import AllHandedOver, Finished, GatewayEvent
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.peers.link import PeerLost
from pbkv_cluster.gateway.peers.peers import Peers
from pbkv_cluster.gateway.step.relay import ReceiverBehind
from pbkv_cluster.gateway.step.request import StepRequest
from pbkv_cluster.gateway.step.request_wire import step_request_to_wire
from pbkv_cluster.gateway.step.state import StepState
from pbkv_cluster.gateway.step.step import Step
from pbkv_cluster.store.cluster_index import Holder

_PAUSE_S = 0.05  # where the workflow has just moved


@dataclass(slots=True)
class Forwarding:
    """To other gateways."""

    peers: Peers
    decisions: Decisions
    clock: Clock

    async def run(self, step: Step, request: StepRequest, holder: Holder, received: Received) -> AsyncIterator[GatewayEvent]:
        """The events of a step that another gateway runs.

        If the step's state is not final afterwards, that gateway is gone, or holds the workflow no longer: look for the holder
        again. `received` then has what has come so far.

        Raises:
            ReceiverBehind: the step's output may have gone straight to its client, which knows alone what it has.
            PbkvError: the other gateway has refused the step, or could not run it.
        """
        self.decisions[Reason.CALL_PASSED_ON] += 1
        link = await self.peers.link(holder.incarnation, holder.address)
        if step.is_final:  # cancelled, or expired, meanwhile
            return
        message = step_request_to_wire(replace(request, resume=received.resumption()))
        timeout_s = None if step.deadline is None else max(step.deadline - self.clock.now(), 0.0)
        stream = step.stream = link.submit(message, step.span.metadata(), timeout_s)
        step.runs_elsewhere = True
        may_be_direct = request.receiver is not None and request.resume is None
        try:
            async for event in stream:
                if step.is_final:  # cancelled while the event was on its way
                    return
                may_be_direct = may_be_direct and isinstance(event, AllHandedOver)
                if isinstance(event, Finished | AllHandedOver):
                    step.transition(StepState.FINISHED)
                if received.take(event):
                    yield event
        except PeerLost as error:
            if not step.is_final:
                self.peers.lose(holder)
                if may_be_direct:
                    raise ReceiverBehind(str(error)) from error
        except TryAgain as error:
            if may_be_direct:
                raise ReceiverBehind(str(error)) from error
            await asyncio.sleep(_PAUSE_S)
        except asyncio.CancelledError:
            # The stream of a cancelled step raises this too: then there is no cancel of the present task.
            check_cancelled()
            if not step.is_final:
                raise TryAgain("the gateway is stopping") from None
        finally:
            step.runs_elsewhere = False
