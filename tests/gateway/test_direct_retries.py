"""Output that may go straight to a client, where a worker is lost: what has been relayed is not sent again."""

from dataclasses import replace
from typing import Any

from pbkv_cluster.core.workflow.receiver import ID_BYTES
from pbkv_cluster.rpc.v1 import types_pb2
from pbkv_cluster.store.cluster_index import WorkerEntry
from tests.gateway.peers import ScriptedWorker, answer_tokens
from tests.gateway.rig import read, running

EIGHT = types_pb2.Sampling(max_tokens=8, seed=5)


class WithOutputPort(ScriptedWorker):
    """A worker that could send its output to clients, and relays it."""

    def record(self) -> WorkerEntry:
        return replace(super().record(), output_address="127.0.0.1:1")


async def test_what_has_been_relayed_is_gone_on_with_by_the_gateway() -> None:
    doomed = WithOutputPort("w0", stop_at=3)
    async with running(doomed) as rig:
        receiver: dict[str, Any] = {"receiver": types_pb2.Receiver(id=bytes(ID_BYTES), call=1), "step_id": "one"}
        call = rig.submit(await rig.start_workflow(), sampling=EIGHT, **receiver)
        await doomed.stopped.wait()
        other = WithOutputPort("w1")
        await rig.add_worker(other)
        await rig.sees(lambda status: len(status.workers) == 2, "the other worker is known")
        await doomed.server.stop(0)
        answer = await read(call)
        assert answer.token_ids == answer_tokens(EIGHT)
        assert answer.text == "".join(map(chr, answer_tokens(EIGHT)))
        assert [request.HasField("direct") for request in (doomed.requests[0], other.requests[0])] == [True, False]
