"""The directory and the index in every kind of Redis that a URL can name, with real servers."""

import asyncio
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote_plus, urlencode

import pytest
from redis.crc import key_slot

from pbkv_cluster.core.blocks import KEY_BYTES
from pbkv_cluster.core.errors import StartupError, Unavailable
from pbkv_cluster.store.cluster_index import BlockIndex, Directory, Match, ServiceEntry, cluster_names, connect
from pbkv_cluster.store.cluster_index.redis_check import check_redis
from pbkv_cluster.store.cluster_index.redis_server import free_port
from tests.certificates import Authority, Certificate
from tests.polling import eventually
from tests.store.redis_connection.proxy import proxy_of
from tests.store.redis_connection.servers import HOST, SENTINEL_PASSWORD, Server, cluster, serving, tls_options, watched

NAME = "news"
TTL_S = 60.0
KEYS = [bytes([number]) * KEY_BYTES for number in range(3)]
FAILOVER_S = 60.0


async def use(url: str, name: str = NAME) -> None:
    """All kinds of commands that members send: scripts over several keys, transactions, scans, several keys at once."""
    client = connect(url, name, timeout_s=5.0)
    try:
        directory, index = Directory(client, name, TTL_S), BlockIndex(client, name, TTL_S)
        for service in ("gateway", "predictor"):
            await directory.announce_service(ServiceEntry(service, "127.0.0.1:1", 1))
        assert await directory.service_address("gateway") == "127.0.0.1:1"
        await directory.withdraw_service(ServiceEntry("predictor", "127.0.0.1:1", 1))
        assert await directory.service_address("predictor") is None
        await index.announce("w", "1", dict.fromkeys(KEYS[:2], 1))
        assert await index.publish("w", "1", {KEYS[2]: 1})
        assert await index.match(KEYS, [("w", "1")]) == [Match(3, 3)]
        assert {key for page in [page async for page in index.pages(("w", "1"))] for key in page} == set(KEYS)
        assert name in await cluster_names(client)
    finally:
        await client.aclose()


async def test_a_user_of_an_access_list(tmp_path: Path) -> None:
    allowed = "~pbkv:* &* +@all -@dangerous +info"
    with serving(tmp_path, "user default off", f"user app on >secret-of-app {allowed}") as server:
        await use(f"redis://app:secret-of-app@{server.address}/0")
        for login in ("app:wrong", "other:secret-of-app", ""):
            with pytest.raises(Unavailable):
                await use(f"redis://{login}{'@' if login else ''}{server.address}/0")


def server_context(own: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own.certificate, own.key)
    return context


async def test_tls(tmp_path: Path) -> None:
    own, other = Authority(tmp_path).sign("redis"), Authority(tmp_path, "other")
    context = server_context(own)
    with serving(tmp_path, "requirepass secret") as server:
        async with proxy_of(server, context) as proxy:
            url = f"rediss://:secret@127.0.0.1:{proxy.port}/0"
            await use(f"{url}?ssl_ca_certs={own.ca}")
            await asyncio.to_thread(check_redis, f"{url}?ssl_ca_certs={own.ca}", NAME)
            for untrusted in (f"{url}?ssl_ca_certs={other.ca}", url):
                with pytest.raises(Unavailable, match="certificate"):
                    await use(untrusted)
            with pytest.raises(Unavailable):
                await use(url.replace("rediss", "redis"))


async def test_a_redis_cluster_behind_tls(tmp_path: Path) -> None:
    own, other = Authority(tmp_path).sign("redis"), Authority(tmp_path, "other")
    port = free_port(HOST)  # of the proxy, which the node says is its own
    with cluster(tmp_path, f"cluster-announce-port {port}", nodes=1) as (node,):
        async with proxy_of(node, server_context(own), port):
            url = f"rediss+cluster://{HOST}:{port}"
            await use(f"{url}?ssl_ca_certs={own.ca}")
            await asyncio.to_thread(check_redis, f"{url}?ssl_ca_certs={own.ca}", NAME)
            with pytest.raises(Unavailable, match="certificate"):
                await use(f"{url}?ssl_ca_certs={other.ca}")
            with pytest.raises(Unavailable):
                await use(f"redis+cluster://{HOST}:{port}")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def cluster_url(nodes: Sequence[Server]) -> str:
    return "redis+cluster://" + ",".join(node.address for node in nodes)


@pytest.mark.parametrize("name", ["news", "a", "b", "c"])  # whose slots lie on several nodes
async def test_a_redis_cluster(nodes: list[Server], name: str) -> None:
    url = cluster_url(nodes)
    await asyncio.to_thread(check_redis, url, name)
    await use(url, name)
    await use(cluster_url(nodes[2:]), name)


async def test_names_of_the_test_lie_on_several_nodes(nodes: list[Server]) -> None:
    assert {key_slot(name.encode()) * len(nodes) // 16384 for name in ("news", "a", "b", "c")} == {0, 1, 2}


async def test_a_node_of_a_redis_cluster_is_no_server_of_its_own(nodes: list[Server]) -> None:
    with pytest.raises(StartupError, match=r"runs in cluster mode: write redis\+cluster://"):
        await asyncio.to_thread(check_redis, f"redis://{nodes[0].address}/0", NAME)


async def test_a_server_of_its_own_is_no_redis_cluster(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        with pytest.raises(StartupError, match="cluster support disabled"):
            await asyncio.to_thread(check_redis, f"redis+cluster://{server.address}", NAME)
        with pytest.raises(StartupError, match="primary 'main' is not known"):
            await asyncio.to_thread(check_redis, f"redis+sentinel://{server.address}/main", NAME)


async def test_a_slot_that_moves_is_followed(nodes: list[Server]) -> None:
    name = "moving"
    slot = key_slot(name.encode())
    client = connect(cluster_url(nodes), name, timeout_s=5.0)
    directory = Directory(client, name, TTL_S)
    await directory.announce_service(ServiceEntry("gateway", "127.0.0.1:1", 1))
    source = nodes[slot * len(nodes) // 16384]
    target = next(node for node in nodes if node is not source)
    with source.client() as old, target.client() as new:
        ids = {node: other.execute_command("CLUSTER MYID") for node, other in ((source, old), (target, new))}
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        for key in old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            old.execute_command("MIGRATE", HOST, target.port, key, 0, 5000)
        for moved in (new, old):
            moved.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        assert await directory.service_address("gateway") == "127.0.0.1:1"
        await directory.announce_service(ServiceEntry("predictor", "127.0.0.1:2", 1))
        assert new.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) > 2
    await client.aclose()


OVER_TLS = pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])


@pytest.mark.slow
@OVER_TLS
async def test_sentinels_that_fail_over_are_followed(tmp_path: Path, over_tls: bool) -> None:
    with watched(tmp_path, Authority(tmp_path).sign("redis") if over_tls else None) as servers:
        await asyncio.to_thread(check_redis, servers.url, NAME)
        await use(servers.url)
        client = connect(servers.url, NAME)
        directory = Directory(client, NAME, TTL_S)
        servers.sentinels[0].kill()  # the two others are enough, for the failover and for us
        servers.primary.kill()
        with pytest.raises(Unavailable):
            await directory.announce_service(ServiceEntry("gateway", "127.0.0.1:7", 1))

        async def announced() -> bool:
            try:
                await directory.announce_service(ServiceEntry("gateway", "127.0.0.1:7", 1))
            except Unavailable:
                return False
            return True

        await eventually(announced, FAILOVER_S)
        with servers.replica.client(username="app", password="secret-of-app") as replica:
            assert replica.info("replication")["role"] == "master"
            assert replica.get(f"pbkv:{{{NAME}}}:service:gateway")
        await client.aclose()


@pytest.mark.slow
@OVER_TLS
async def test_a_primary_that_is_made_a_replica_is_left(tmp_path: Path, over_tls: bool) -> None:
    """Its connections stay open: it is found out by what it answers."""
    with watched(tmp_path, Authority(tmp_path).sign("redis") if over_tls else None) as servers:
        client = connect(servers.url, NAME, timeout_s=5.0)
        directory, index = Directory(client, NAME, TTL_S), BlockIndex(client, NAME, TTL_S)
        await directory.announce_service(ServiceEntry("gateway", "127.0.0.1:1", 1))
        await index.announce("w", "1", dict.fromkeys(KEYS, 1))
        with servers.sentinels[0].client() as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", "main")

        async def moved() -> bool:
            with servers.primary.client(username="app", password="secret-of-app") as old:
                return bool(old.info("replication")["role"] == "slave")

        await eventually(moved, FAILOVER_S)
        await directory.announce_service(ServiceEntry("gateway", "127.0.0.1:2", 1))
        assert await directory.service_address("gateway") == "127.0.0.1:2"
        assert await index.publish("w", "1", {KEYS[0]: 2})
        await client.aclose()


@pytest.mark.slow
async def test_sentinels_behind_tls_want_trust_a_certificate_and_a_login_and_so_does_the_primary(tmp_path: Path) -> None:
    own, other = Authority(tmp_path).sign("redis"), Authority(tmp_path, "other")
    other.sign("intruder")
    unknown = "primary 'main' is not known"
    with watched(tmp_path, own) as servers:
        await use(servers.url)
        for right, wrong, said in (
            (quote_plus(own.ca), quote_plus(other.ca), f"{unknown}.*certificate verify failed"),
            (quote_plus("/redis."), quote_plus("/intruder."), unknown),  # certificate and key
            (SENTINEL_PASSWORD, "wrong", f"{unknown}.*invalid username-password pair"),
            ("app:secret-of-app", "app:wrong", "^Redis: invalid username-password pair"),
        ):
            assert right in servers.url
            with pytest.raises(Unavailable, match=said):
                await use(servers.url.replace(right, wrong))


async def test_a_server_refuses_a_client_by_its_certificate(tmp_path: Path) -> None:
    own, other = Authority(tmp_path).sign("redis"), Authority(tmp_path, "other").sign("intruder")
    with serving(tmp_path, tls=own) as server:
        url = f"rediss://{server.address}/0"
        with pytest.raises(Unavailable):
            await use(f"redis://{server.address}/0")
        await use(f"{url}?{urlencode(tls_options(own))}")
        for options in (tls_options(replace(other, ca=own.ca)), {"ssl_ca_certs": own.ca}):
            with pytest.raises(Unavailable):
                await use(f"{url}?{urlencode(options)}")
            with pytest.raises(StartupError, match=r"redis\.url"):
                await asyncio.to_thread(check_redis, f"{url}?{urlencode(options)}", NAME)
