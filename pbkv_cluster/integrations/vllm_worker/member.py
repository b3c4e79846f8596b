"""A vLLM worker as a member of a cluster."""

import tempfile
from importlib import import_module
from pathlib import Path

from pbkv_cluster.cluster.membership.worker_member import WorkerMemberBase
from pbkv_cluster.core.clock import SystemClock


class VllmMember(WorkerMemberBase):
    """A worker with vLLM's engine, in this process."""

    def prepare(self) -> None:
        import_module("pbkv_cluster.integrations.vllm_worker.server")

    async def start(self) -> str:
        from pbkv_cluster.integrations.vllm_worker.server import VllmServer

        folder = _own_folder(self._context.state_dir)

        async def remove_folder() -> None:
            folder.cleanup()

        self._add_part(remove_folder)
        self._publish_events()
        worker = VllmServer(
            self._context.config,
            self._worker_id,
            SystemClock(),
            Path(folder.name),
            predictor=self._redis.directory,
            on_change=self._changed,
        )
        self._add_part(worker.stop, worker.wait)
        facts = await worker.start(self._context.host)
        await self._announce_worker(facts, worker.residency, worker.figures.put, lambda: worker.problems)
        return facts.address


def _own_folder(state_dir: str) -> tempfile.TemporaryDirectory[str]:
    """A folder of this process alone. That of the cluster, which there is on the node of `serve` only, is removed even after a
    kill.
    """
    return tempfile.TemporaryDirectory(prefix="vllm-", dir=state_dir if state_dir and Path(state_dir).is_dir() else None)
