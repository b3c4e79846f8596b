"""A cluster that lives as long as the process that starts it: on Ray started here, or on a Ray cluster that it joins.

In a Ray cluster it follows the nodes that join and leave.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pbkv_cluster.cluster.frame import ray_nodes, ray_session
from pbkv_cluster.cluster.frame.ray_messages import RayMessages
from pbkv_cluster.cluster.frame.ray_processes import RayProcesses
from pbkv_cluster.cluster.membership.member import MakeMember, MemberContext
from pbkv_cluster.cluster.membership.member_board import MemberBoard
from pbkv_cluster.cluster.membership.members import GatewayMember, HostStoreMember, PredictorMember
from pbkv_cluster.cluster.membership.problems.problem_watch import ProblemWatch
from pbkv_cluster.cluster.membership.worker_member import WORKER_PREFIX
from pbkv_cluster.cluster.nodes.node_requests import NodeRequests
from pbkv_cluster.cluster.startup import preflight
from pbkv_cluster.cluster.startup.acquaintance import await_acquaintance
from pbkv_cluster.cluster.startup.gateway_ports import with_free_ports, without_http
from pbkv_cluster.cluster.startup.interrupts import Interrupts
from pbkv_cluster.cluster.startup.private_file import write_private
from pbkv_cluster.cluster.startup.run_record import RunRecord
from pbkv_cluster.cluster.startup.stages import Stages
from pbkv_cluster.cluster.startup.state_dir import StateDir
from pbkv_cluster.cluster.startup.tier_sizes import tier_sizes
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.core.locations.addresses import join_address
from pbkv_cluster.core.security.exposure import open_to_all
from pbkv_cluster.rpc.security import set_up_security, stop_security
from pbkv_cluster.rpc.services import GATEWAY, PREDICTOR, is_gateway
from pbkv_cluster.store.cluster_index import RedisServer

if TYPE_CHECKING:
    from pbkv_cluster.cluster.frame.actor_group import ActorGroup
    from pbkv_cluster.cluster.frame.supervisor import Supervisor
    from pbkv_cluster.cluster.nodes.gateway_plan import GatewayPlan
    from pbkv_cluster.cluster.nodes.node_follower import NodeFollower

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_HEALTH_S = 1.0
_KEY_BYTES = 32


class LocalCluster:
    """Starts Redis, Ray and all members; leaving the context stops everything that it started."""

    def __init__(
        self,
        config: Config,
        edges: Mapping[str, MakeMember] | None = None,
        report: Callable[[str], None] = log.info,
        record: RunRecord | None = None,
        dashboard: MakeMember | None = None,
    ) -> None:
        """Args:
        config: of the cluster.
        edges: more members by name, from packages above this one; they run on this node.
        report: takes a line for each stage of the start, and for what happens to nodes later.
        record: what other commands are to know of this process; None: nothing.
        dashboard: makes the pages for operators, which are served by this process; None: there are none.
        """
        self._record = record
        self._report = report
        self._config = config
        self._edges = dict(edges or {})
        self._dashboard = dashboard
        self._stack = ExitStack()
        self._supervisor: Supervisor | None = None
        self._follower: NodeFollower | None = None
        self._redis: RedisServer | None = None
        self._ray_processes: RayProcesses | None = None  # None: not started here
        self._ray_is_lost = False
        self._interrupts = Interrupts()
        self._messages = RayMessages()
        self.name = config.cluster.name
        self.gateway_address = ""  # of the first gateway
        self.http_address = ""  # of the first gateway's port for OpenAI's and Anthropic's APIs; empty: not served
        self.redis_url = ""  # with the password: not for logs
        self.redis_url_file: Path | None = None  # holds the URL, for its owner's eyes; None: Redis was not started here
        self.discovery_url = ""  # where Prometheus finds the members (http_sd); empty: metrics are off
        self.dashboard_url = ""  # pages for operators; empty: none
        self.ray_dashboard_url = ""  # empty: none

    def __enter__(self) -> Self:
        """Raises:
        InvalidArgument: the configuration names an unknown policy or predictor.
        StartupError: something cannot start; says what and why, and nothing is left running.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def wait(self) -> None:
        """Returns at SIGINT or SIGTERM.

        Raises:
            Unavailable: the cluster cannot heal: Ray or Redis is lost for good, or nothing has served for as long as a start
                may take; says why.
        """
        try:
            problems = ProblemWatch(self.redis_url, self.name, self._config.redis.lease_s, self._report)
            self._stack.callback(problems.close)
            while not self._interrupts.arrived.wait(_HEALTH_S):
                self._check_ray()
                if self._redis is not None:
                    self._redis.check_alive()
                self._check_members()
                problems.poll()
        except KeyboardInterrupt:
            log.info("interrupted")

    @property
    def addresses(self) -> dict[str, str]:
        """Addresses of all members by name; of one that is being restarted, its last one. Only gateways' never change."""
        return {} if self._supervisor is None else self._supervisor.addresses()

    @property
    def gateway_addresses(self) -> list[str]:
        """host:port of all gateways for clients, the first one's first; of one that is being restarted, its last one."""
        return [address for name, address in self.addresses.items() if is_gateway(name) and address]

    @property
    def standby_pid(self) -> int:
        """Process id of the standby that takes the place of the next member that ends; 0: none is ready."""
        return 0 if self._supervisor is None else self._supervisor.standby_pid()

    def pids(self, timeout_s: float = 60.0) -> dict[str, int]:
        """Process ids of the members by name: gateway, predictor, host-store-0, worker-0 and so on.

        A member that is being restarted is waited for.

        Raises:
            Unavailable: it is not back within `timeout_s` seconds, or never will be.
        """
        return {} if self._supervisor is None else self._supervisor.pids(timeout_s, self._check_ray)

    def stop(self) -> None:
        """Stops everything in the reverse order of its start. May be called again.

        An interrupt meanwhile ends members at once instead of in good order; a further one changes nothing.
        """
        try:
            self._stack.close()
        finally:
            self._interrupts.restore()

    def _start(self) -> None:
        stages = Stages(self._report)
        preflight.check(self._config)
        preflight.check_plug_ins(self._config)
        stages.done("settings, ports, model and Redis checked")
        security = self._config.security
        cluster_key = secrets.token_urlsafe(_KEY_BYTES) if security.credentials else ""
        set_up_security(security, cluster_key)
        self._stack.callback(stop_security)
        self._interrupts.catch()
        ray_session.set_environment(self._config)
        state_dir = StateDir.create()
        self._stack.callback(state_dir.close)
        if self._record is not None:
            self._record = self._record.write(state_dir.path)
        self._stack.callback(self._messages.release)
        # Ray first: in a Ray cluster that is joined, it tells under which address the other nodes reach this one.
        self.ray_dashboard_url = ray_session.start(self._config)
        self._stack.callback(ray_session.stop)
        self._messages.capture()
        from pbkv_cluster.cluster.nodes.gateway_plan import GatewayPlan  # this imports Ray, whose environment is set now

        stages.done("Ray joined" if self._config.cluster.address else "Ray started")
        self._interrupts.catch()  # again: Ray has replaced our handler by its own
        joined = bool(self._config.cluster.address)
        self._ray_processes = None if joined else RayProcesses()
        host = self._config.cluster.host or ("" if joined else _LOOPBACK)
        here = host or ray_nodes.this_node_address()
        if warning := open_to_all(self._config, here):
            self._report(warning)
        redis = self._redis = RedisServer.resolve(self._config.redis.url, host=here, cluster=self.name)
        self._stack.callback(redis.stop)
        self.redis_url = redis.url
        if not self._config.redis.url:
            self.redis_url_file = write_private(state_dir.path / "redis.url", redis.url)
        if self._config.gateway.http_port >= 0 and (missing := preflight.missing_for_http()):
            stages.done(f"no HTTP API, because {missing}")
            self._config = without_http(self._config)
        given, self._config = self._config, with_free_ports(self._config, here)
        if self._config.gateway.http_port >= 0:
            self.http_address = join_address(here, self._config.gateway.http_port)
        preflight.check_name_is_free(self._config)  # again: starting Ray takes seconds
        stages.done("Redis found" if self._config.redis.url else "Redis started")
        context = MemberContext(self._config, redis.url, host, "", cluster_key=cluster_key, state_dir=str(state_dir.path))
        self._launch(context, GatewayPlan(context, given, ray_nodes.this_node_id(), here), stages)
        if self._record is not None:
            gateways = ",".join(self.gateway_addresses)
            self._record = replace(self._record, gateway=gateways, redis_url=redis.url).write(state_dir.path)

    def _launch(self, context: MemberContext, gateways: "GatewayPlan", stages: Stages) -> None:
        from pbkv_cluster.cluster.frame.actor_group import ActorGroup
        from pbkv_cluster.cluster.frame.actors import MemberSpec
        from pbkv_cluster.cluster.frame.head_thread import HeadThread
        from pbkv_cluster.cluster.frame.standby import Standby
        from pbkv_cluster.cluster.nodes.node import Node
        from pbkv_cluster.cluster.nodes.node_follower import NodeFollower
        from pbkv_cluster.cluster.nodes.node_plan import NodePlan

        config = self._config
        deadline = time.monotonic() + config.cluster.start_timeout_s
        actors = ActorGroup(config.cluster.start_timeout_s)
        self._stack.callback(self._stop_members, actors)
        nodes = ray_nodes.living()
        plan = NodePlan(context, nodes, gateways)
        # Members that keep their address as long as the cluster runs, or their state in a file, stay on this node.
        this_node = ray_nodes.this_node_id()
        here: dict[str, MakeMember] = {PREDICTOR: PredictorMember, **self._edges}
        specs = [MemberSpec(name, make, context, this_node) for name, make in here.items()]
        others = [node for node in nodes if node.node_id != this_node and plan.workers_of(node)]
        for spec in specs + gateways.here(len(others)):
            actors.launch(spec)
        placed = [(Node.placed(node, specs), specs) for node in nodes for specs in [plan.members_of(node)]]
        for spec in [spec for _, specs in placed for spec in specs]:
            actors.launch(spec)
        actors.await_ready(lambda name: stages.done(f"{name} ready"))
        board = MemberBoard(self.redis_url, self.name, config.redis.lease_s)
        self._stack.callback(board.stop)
        board.start()
        standby = Standby([*here.values(), GatewayMember, HostStoreMember], context, this_node)
        self._supervisor = actors.supervise(standby, board.show)
        self._stack.callback(self._supervisor.stop)
        self._supervisor.start()
        if self._config.metrics.enabled:
            head = HeadThread(context, self._supervisor, self._report, self._dashboard)
            self._stack.callback(head.stop)
            self.discovery_url, self.dashboard_url = head.discovery_url, head.dashboard_url
        self.gateway_address = self.addresses[GATEWAY]
        workers = sum(map(plan.workers_of, nodes))
        for address in self.gateway_addresses:
            await_acquaintance(address, workers, deadline - time.monotonic())
        for line in tier_sizes(config, self.redis_url):
            self._report(line)
        requests = NodeRequests(self.redis_url, self.name, config.redis.lease_s)
        self._stack.callback(requests.close)
        known, drain_s = [node for node, _ in placed], config.cluster.drain_timeout_s
        self._follower = NodeFollower(plan, self._supervisor, known, drain_s, requests, board.show_nodes, self._report)
        self._stack.callback(self._follower.stop)
        self._follower.start()

    def _stop_members(self, actors: "ActorGroup") -> None:
        try:
            if not self._ray_is_lost:  # without Ray, its processes have ended, or end now
                actors.stop(first=is_gateway)  # so that clients learn of the end from the gateways
        except KeyboardInterrupt:
            log.warning("interrupted again: the members are killed")
        finally:
            self._interrupts.ignore()  # what follows takes seconds at most, and the kernel does the same if we are killed

    def _check_ray(self) -> None:
        """Raises:
        Unavailable: the Ray cluster is lost.
        """
        try:
            if self._ray_processes is not None:
                self._ray_processes.check_alive()
            ray_session.check_alive()
        except Unavailable:
            self._ray_is_lost = True
            raise

    def _check_members(self) -> None:
        """Raises:
        Unavailable: for longer than a start may take, there has been no gateway or no worker; or nobody restarts members.
        """
        if self._supervisor is None:
            return
        self._supervisor.check_alive()
        if self._follower is not None:
            self._follower.check_alive()
        limit_s = self._config.cluster.start_timeout_s
        workers = [name for name in self.addresses if name.startswith(WORKER_PREFIX)]
        gateways = [name for name in self.addresses if is_gateway(name)]
        for what, names in (("every gateway", gateways), ("every worker", workers)):
            down_s = min(map(self._supervisor.down_s, names), default=0.0)
            if down_s > limit_s:
                causes = {entry.name: entry.last_failure for entry in self._supervisor.entries()}
                raise Unavailable(f"{what} has been down for {down_s:.0f} s (cluster.start_timeout_s): {causes[names[0]]}")
