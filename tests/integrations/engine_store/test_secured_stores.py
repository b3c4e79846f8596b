"""Engines' stores with API keys and TLS: of a node's own store, of other nodes, and of a cluster's host store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pbkv_cluster.core.errors import InvalidArgument, Unauthenticated
from pbkv_cluster.integrations.engine_store import StoreSettings
from pbkv_cluster.integrations.engine_store.node_store.launcher import running_address
from pbkv_cluster.rpc.security import Access, set_up_access, stop_security
from pbkv_cluster.store.cluster_index import RedisServer
from pbkv_cluster.store.region_lease import lease_region
from tests.certificates import Authority
from tests.integrations.engine_store.engines import engine, got, keys, put, settings
from tests.integrations.engine_store.test_node_store import processes
from tests.polling import wait_for
from tests.secured import CLUSTER_KEY, OPERATOR, RED, secured


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with RedisServer.resolve("") as server:
        yield server.url


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Options of stores that ask for keys and certificates; ends what has been started."""
    file = tmp_path / "keys.yaml"
    file.write_text(f"[{{key: {RED}, tenant: red}}, {{key: {OPERATOR}, operator: true}}]")
    own = Authority(tmp_path).sign("engine")
    children = {process.pid for process in psutil.Process().children()}
    yield {
        "credentials": str(file),
        "api_key": OPERATOR,
        "tls_certificate": own.certificate,
        "tls_key": own.key,
        "tls_ca": own.ca,
    }
    stop_security()
    for process in psutil.Process().children():
        if process.pid not in children and "node_store" in " ".join(process.cmdline()):
            process.terminate()
            process.wait(30.0)


def test_two_nodes_with_keys_and_tls_read_each_others_blocks(redis_url: str, keyed: dict[str, Any]) -> None:
    here, there = (settings(redis_url=redis_url, cluster="keyed", **keyed) for _ in range(2))
    with engine(there) as far, engine(here) as near:
        put(far, 1, 2, 3)
        wait_for(lambda: near.leading(keys(1, 2, 3, 4)) == 3)
        assert got(near, 1, 2, 3, 4) == [1, 2, 3, None]
        assert near.counts["loaded_remote"] == 3
        (process,) = processes(here.name)
        assert OPERATOR not in " ".join(process.cmdline())


@pytest.mark.parametrize("tls", [True, False])
async def test_a_store_with_keys_lets_nobody_in_without(redis_url: str, keyed: dict[str, Any], tls: bool) -> None:
    options = keyed if tls else {name: keyed[name] for name in ("credentials", "api_key")}
    here = settings(redis_url=redis_url, cluster=f"alone-{tls}", host="0.0.0.0" if not tls else "127.0.0.1", **options)
    with engine(here) as one:
        put(one, 1)
        assert got(one, 1) == [1]
        address = running_address(here.name)
        assert address is not None
        address = f"127.0.0.1:{address.rpartition(':')[2]}"
        with_tls = settings(**options).access()
        for key, problem in (("", "needed"), ("x" * 30, "not known")):
            set_up_access(Access(key, None if with_tls is None else with_tls.tls))
            with pytest.raises(Unauthenticated, match=problem):
                await lease_region(address, "somebody", 0)


def test_a_host_store_of_a_cluster_asks_engines_for_a_key(tmp_path: Path) -> None:
    """Whose key is a tenant's, or nobody's, gets no region, and goes on without."""
    import asyncio
    import threading

    from pbkv_cluster.core.clock import SystemClock
    from pbkv_cluster.store.arena.arena import Arena
    from pbkv_cluster.store.server import HostStore

    async def no_workers() -> dict[str, str]:
        return {}

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with secured(tmp_path):

        async def start() -> tuple[HostStore, str]:
            store = HostStore(Arena(f"test:{tmp_path.name}", 16 << 20, 60.0, SystemClock()), no_workers)
            return store, await store.start("127.0.0.1")

        store, address = asyncio.run_coroutine_threadsafe(start(), loop).result(60.0)
        try:
            for key in (OPERATOR, CLUSTER_KEY):
                with engine(settings(endpoint=address, api_key=key)) as one:
                    put(one, 1)
                    assert got(one, 1) == [1]
            for key, problem in ((RED, "operator"), ("y" * 30, "not known")):
                with engine(settings(endpoint=address, api_key=key, start_timeout_s=0.0)) as other:
                    wait_for(lambda problem=problem, other=other: problem in other.problem)  # type: ignore[misc]
                    assert got(other, 1) == [None]
        finally:
            asyncio.run_coroutine_threadsafe(store.stop(), loop).result(60.0)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@pytest.mark.parametrize(
    ("options", "field", "problem"),
    [
        ({"redis_url": "redis://h:1/0", "host": "10.0.0.7"}, "host", "needs credentials"),
        ({"redis_url": "redis://h:1/0", "host": "::"}, "host", "needs credentials"),
        ({"credentials": "/keys.yaml", "api_key": ""}, "api_key", "show one"),
        ({"tls_key": "/key.pem"}, "tls_certificate", "need each other"),
    ],
)
def test_what_would_be_open_to_all_is_refused(options: dict[str, str], field: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        StoreSettings.of(options)
    assert caught.value.field == field


def test_where_nothing_is_served_to_others_any_host_will_do() -> None:
    StoreSettings.of({"redis_url": "", "host": "10.0.0.7"})
    StoreSettings.of({"redis_url": "redis://h:1/0", "host": "10.0.0.7", "endpoint": "127.0.0.1:1"})


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="holds no certificates") as caught:
        settings(tls_ca=str(tmp_path / "none.pem")).access()
    assert caught.value.field == "tls_ca"


def test_key_and_certificates_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBKV_API_KEY", OPERATOR)
    monkeypatch.setenv("PBKV_TLS_CA", "system")
    found = StoreSettings.of({})
    assert (found.api_key, found.tls_ca) == (OPERATOR, "system")
    assert OPERATOR not in repr(found)
