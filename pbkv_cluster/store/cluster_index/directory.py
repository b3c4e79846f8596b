"""Who is in the cluster: workers, nodes, services and running workflows."""

from collections.abc import AsyncIterator
from dataclasses import replace

from redis.asyncio import Redis

from pbkv_cluster.store.cluster_index.entries import NodeEntry, ServiceEntry, WorkerEntry, WorkflowEntry
from pbkv_cluster.store.cluster_index.expiring_table import ExpiringTable


class Directory:
    """Registry of a cluster. To announce is also to renew: members do so well within `lease_s` seconds.

    Every method raises Unavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis, cluster: str, lease_s: float) -> None:
        prefix = f"pbkv:{cluster}:"
        self.lease_s = lease_s
        self._workers = ExpiringTable(redis, prefix, "worker", WorkerEntry)
        self._nodes = ExpiringTable(redis, prefix, "node", NodeEntry)
        self._services = ExpiringTable(redis, prefix, "service", ServiceEntry)
        self._workflows = ExpiringTable(redis, prefix, "workflow", WorkflowEntry)

    @property
    def malformed(self) -> int:
        """Records that this directory has skipped because it could not read them."""
        return sum(table.malformed for table in (self._workers, self._nodes, self._services, self._workflows))

    async def announce_worker(self, record: WorkerEntry) -> None:
        await self._workers.put(record.worker_id, record, self.lease_s)

    async def withdraw_worker(self, worker_id: str, incarnation: str | None = None) -> None:
        """Removes a worker; with `incarnation` only that one, so a late leaver does not remove its successor."""
        await self._workers.remove(worker_id, None if incarnation is None else lambda record: record.incarnation == incarnation)

    async def workers(self) -> list[WorkerEntry]:
        """By worker id."""
        return sorted([each async for each in self._workers.records()], key=lambda record: record.worker_id)

    async def announce_node(self, record: NodeEntry) -> None:
        await self._nodes.put(record.node_id, record, self.lease_s)

    async def withdraw_node(self, node_id: str) -> None:
        await self._nodes.remove(node_id)

    async def nodes(self) -> list[NodeEntry]:
        """By node id."""
        return sorted([each async for each in self._nodes.records()], key=lambda record: record.node_id)

    async def announce_service(self, record: ServiceEntry) -> None:
        await self._services.put(record.name, record, self.lease_s)

    async def withdraw_service(self, record: ServiceEntry) -> None:
        """Removes a service, unless another process has taken its name since."""
        await self._services.remove(record.name, lambda present: present == record)

    async def service(self, name: str) -> ServiceEntry | None:
        return await self._services.get(name)

    async def service_address(self, name: str) -> str | None:
        """The service's host:port; None if it is not announced."""
        entry = await self.service(name)
        return entry.address if entry else None

    async def services(self) -> list[ServiceEntry]:
        """By name."""
        return sorted([each async for each in self._services.records()], key=lambda record: record.name)

    async def put_workflow(self, record: WorkflowEntry) -> None:
        """Enters a workflow for `record.lease_s` seconds."""
        await self._workflows.put(record.workflow_id, record, record.lease_s)

    async def workflow(self, workflow_id: str) -> WorkflowEntry | None:
        return await self._workflows.get(workflow_id)

    async def touch_workflow(self, workflow_id: str, steps: int) -> bool:
        """Renews a workflow's lease and raises its number of steps to `steps`; False if it has ended or lapsed."""
        return await self._workflows.update(
            workflow_id,
            lambda record: replace(record, steps=max(record.steps, steps)),
            lambda record: record.lease_s,
        )

    async def remove_workflow(self, workflow_id: str) -> bool:
        """Ends a workflow; False if it had ended already."""
        return await self._workflows.remove(workflow_id)

    def workflows(self) -> AsyncIterator[WorkflowEntry]:
        """The running workflows, page by page, in no order."""
        return self._workflows.records()

    async def workflow_count(self) -> int:
        return await self._workflows.count()
