"""Who is in the cluster: workers, nodes, services, all members that belong to it, and running workflows."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import cast

from redis.asyncio import Redis

from pbkv_cluster.store.cluster_index.client import OnceScript, key_prefix, redis_errors
from pbkv_cluster.store.cluster_index.entries import (
    EndpointEntry,
    GatewayEntry,
    Holder,
    MemberEntry,
    NodeEntry,
    NodeRequest,
    NodeStateEntry,
    ProblemsEntry,
    ServiceEntry,
    WorkerEntry,
    WorkflowEntry,
)
from pbkv_cluster.store.cluster_index.expiring_table import ExpiringTable, Put

_STAMP_S = 600  # that a stamp lives; a gateway writes one a second
_RENEWALS_PER_TTL = 3
_SCAN_PAGE = 1000


async def cluster_names(redis: Redis) -> list[str]:
    """Names of the clusters whose services are announced in a Redis, sorted. Looks at all of its keys.

    Raises:
        Unavailable: Redis does not answer.
    """
    with redis_errors():
        keys = {key async for key in redis.scan_iter(match=key_prefix("*") + "services", count=_SCAN_PAGE)}
    return sorted(key.decode(errors="replace").split(":")[1].strip("{}") for key in keys)


class Directory:
    """Registry of a cluster. Announcing an entry again renews it.

    Every method raises Unavailable when Redis does not answer.
    """

    def __init__(self, redis: Redis, cluster: str, ttl_s: float) -> None:
        """Args:
        redis: client; the caller closes it.
        cluster: name of the cluster, prefix of its keys.
        ttl_s: seconds after which a member's entry is gone if it is not renewed.
        """
        prefix = key_prefix(cluster)
        self.ttl_s = ttl_s
        self._workers = ExpiringTable(redis, prefix, "worker", WorkerEntry)
        self._nodes = ExpiringTable(redis, prefix, "node", NodeEntry)
        self._services = ExpiringTable(redis, prefix, "service", ServiceEntry)
        self._gateways = ExpiringTable(redis, prefix, "gateway", GatewayEntry)
        self._members = ExpiringTable(redis, prefix, "member", MemberEntry)
        self._endpoints = ExpiringTable(redis, prefix, "endpoint", EndpointEntry)
        self._node_states = ExpiringTable(redis, prefix, "node-state", NodeStateEntry)
        self._node_requests = ExpiringTable(redis, prefix, "node-request", NodeRequest)
        self._problems = ExpiringTable(redis, prefix, "problem", ProblemsEntry)
        self._workflows = ExpiringTable(redis, prefix, "workflow", WorkflowEntry)
        self._exchange = OnceScript(redis, prefix, "exchange")
        self._stamp_prefix = f"{prefix}stamp:"

    @property
    def renewal_interval_s(self) -> float:
        """Seconds between two announcements of a member: short enough that one may fail."""
        return self.ttl_s / _RENEWALS_PER_TTL

    @property
    def malformed(self) -> int:
        """Entries that this directory has skipped because it could not read them."""
        known = (self._workers, self._nodes, self._services, self._members, self._endpoints, self._problems, self._workflows)
        return sum(table.malformed for table in (*known, self._gateways, self._node_states, self._node_requests))

    async def announce_worker(self, entry: WorkerEntry) -> None:
        await self._workers.put(entry.worker_id, entry, self.ttl_s)

    async def withdraw_worker(self, worker_id: str, incarnation: str | None = None) -> None:
        """Removes a worker; with `incarnation` only that one, so a late leaver does not remove its successor."""
        await self._workers.remove(worker_id, None if incarnation is None else lambda entry: entry.incarnation == incarnation)

    async def worker(self, worker_id: str) -> WorkerEntry | None:
        return await self._workers.get(worker_id)

    async def workers(self) -> list[WorkerEntry]:
        """By worker id."""
        return sorted([entry async for entry in self._workers.entries()], key=lambda entry: entry.worker_id)

    async def announce_node(self, entry: NodeEntry) -> None:
        await self._nodes.put(entry.node_id, entry, self.ttl_s)

    async def withdraw_node(self, node_id: str) -> None:
        await self._nodes.remove(node_id)

    async def nodes(self) -> list[NodeEntry]:
        """By node id."""
        return sorted([entry async for entry in self._nodes.entries()], key=lambda entry: entry.node_id)

    async def announce_service(self, entry: ServiceEntry) -> None:
        await self._services.put(entry.name, entry, self.ttl_s)

    async def withdraw_service(self, entry: ServiceEntry) -> None:
        """Removes a service, unless another process has taken its name since."""
        await self._services.remove(entry.name, lambda present: present == entry)

    async def service(self, name: str) -> ServiceEntry | None:
        return await self._services.get(name)

    async def service_address(self, name: str) -> str | None:
        """The service's host:port; None if it is not announced."""
        entry = await self.service(name)
        return entry.address if entry else None

    async def announce_gateway(self, entry: GatewayEntry) -> None:
        await self._gateways.put(entry.name, entry, self.ttl_s)

    async def withdraw_gateway(self, entry: GatewayEntry) -> None:
        """Removes a gateway, unless another process has taken its name since."""
        await self._gateways.remove(entry.name, lambda present: present == entry)

    async def gateways(self) -> list[GatewayEntry]:
        """By name."""
        return sorted([entry async for entry in self._gateways.entries()], key=lambda entry: entry.name)

    async def announce_member(self, entry: MemberEntry) -> None:
        await self._members.put(entry.name, entry, self.ttl_s)

    async def withdraw_member(self, entry: MemberEntry) -> None:
        await self._members.remove(entry.name)

    async def members(self) -> list[MemberEntry]:
        """By name. Empty if nobody watches the members."""
        return sorted([entry async for entry in self._members.entries()], key=lambda entry: entry.name)

    async def announce_endpoint(self, entry: EndpointEntry) -> None:
        await self._endpoints.put(entry.member, entry, self.ttl_s)

    async def withdraw_endpoint(self, entry: EndpointEntry) -> None:
        """Removes an endpoint, unless another process has taken its member's name since."""
        await self._endpoints.remove(entry.member, lambda present: present == entry)

    async def endpoints(self) -> list[EndpointEntry]:
        """Where each process serves its metrics, by member."""
        return sorted([entry async for entry in self._endpoints.entries()], key=lambda entry: entry.member)

    async def announce_node_state(self, entry: NodeStateEntry) -> None:
        await self._node_states.put(entry.node_id, entry, self.ttl_s)

    async def withdraw_node_state(self, entry: NodeStateEntry) -> None:
        await self._node_states.remove(entry.node_id)

    async def node_states(self) -> list[NodeStateEntry]:
        """By host. Empty if nobody watches the nodes."""
        return sorted([entry async for entry in self._node_states.entries()], key=lambda entry: (entry.host, entry.node_id))

    async def request_of_node(self, entry: NodeRequest) -> None:
        """Replaces an earlier request to the same node."""
        await self._node_requests.put(entry.node_id, entry, self.ttl_s)

    async def node_requests(self) -> list[NodeRequest]:
        """The latest request to each node that has not been withdrawn, in no order."""
        return [entry async for entry in self._node_requests.entries()]

    async def withdraw_node_request(self, entry: NodeRequest) -> None:
        """Removes a request, unless another one to the same node has replaced it since."""
        await self._node_requests.remove(entry.node_id, lambda present: present == entry)

    async def announce_problems(self, entry: ProblemsEntry) -> None:
        await self._problems.put(entry.member, entry, self.ttl_s)

    async def withdraw_problems(self, member: str) -> None:
        await self._problems.remove(member)

    async def problems(self) -> list[ProblemsEntry]:
        """Of the members that have any, by name."""
        return sorted([entry async for entry in self._problems.entries()], key=lambda entry: entry.member)

    async def exchange_stamp(self, incarnation: str, stamp: str) -> str:
        """Writes a stamp of a gateway's process, and returns the one before; empty: there was none.

        If it is not the one that was written last, what was written since may be lost: Redis has come back empty, or a replica
        has taken its place.
        """
        with redis_errors():
            before = await self._exchange([f"{self._stamp_prefix}{incarnation}"], [stamp, _STAMP_S])
        return "" if before is None else cast(bytes, before).decode(errors="replace")

    async def put_workflow(self, entry: WorkflowEntry) -> bool:
        """Enters or renews a workflow for the `lease_s` seconds of its own lease; False if another gateway holds it."""
        return await self._workflows.put(entry.workflow_id, entry, entry.lease_s, _mark(entry.holder))

    async def take_workflow(self, entry: WorkflowEntry, taken_from: Holder) -> bool:
        """Gives a workflow another holder, that of `entry`; False if `taken_from` holds it no more, or it has ended."""
        return await self._workflows.replace(entry.workflow_id, entry, entry.lease_s, _mark(taken_from))

    async def renew_workflows(self, entries: Sequence[WorkflowEntry]) -> list[bool]:
        """Writes entries of workflows, each as `put_workflow` would, in one round trip."""
        return await self._workflows.put_all(
            [Put(entry.workflow_id, entry, entry.lease_s, _mark(entry.holder)) for entry in entries]
        )

    async def workflow(self, workflow_id: str) -> WorkflowEntry | None:
        return await self._workflows.get(workflow_id)

    async def remove_workflow(self, workflow_id: str, holder: Holder) -> None:
        """Ends a workflow, unless another gateway holds it."""
        await self._workflows.remove(workflow_id, containing=_mark(holder))

    def workflows(self) -> AsyncIterator[WorkflowEntry]:
        """The running workflows, page by page, in no order."""
        return self._workflows.entries()


def _mark(holder: Holder) -> bytes:
    """What the JSON of an entry contains if that gateway holds the workflow. No text in it does: quotes are escaped there."""
    return f'"incarnation":{json.dumps(holder.incarnation)}'.encode()
