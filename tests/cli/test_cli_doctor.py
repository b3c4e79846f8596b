"""`pbkv doctor`: each finding has a level and a remedy, and errors alone make it fail."""

import json
import resource
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from pbkv_cluster.cli.doctor import gpu, machine, network, software
from pbkv_cluster.cli.doctor.finding import Finding, Level
from pbkv_cluster.cluster.startup import run_record
from pbkv_cluster.core.config import load
from pbkv_cluster.core.locations.installation import install_command
from pbkv_cluster.store.cluster_index import RedisServer
from tests.cli.conftest import Pbkv
from tests.cli.test_light_install import plain

FREE = ("--set", "gateway.port=0", "--set", "gateway.http_port=0")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _no_cluster_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests, and the user, may run clusters on this machine, whose ports are no errors."""
    monkeypatch.setattr(run_record, "running", list)


def findings(pbkv: Pbkv, *args: str) -> tuple[int | str | None, dict[str, list[dict[str, Any]]]]:
    """Exit code, and the findings by what was checked."""
    done = pbkv("doctor", *FREE, *args, "--json", "-")
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(done.out):
        found.setdefault(each["check"], []).append(each)
    return done.code, found


def test_this_machine_can_run_a_cluster(pbkv: Pbkv) -> None:
    code, found = findings(pbkv)
    assert code == 0
    assert {"python", "versions", "extras", "block keys", "memory", "shared memory", "open files"} <= set(found)
    assert {"locked memory", "gpu", "ports", "redis"} <= set(found)
    for each in (finding for several in found.values() for finding in several):
        assert each["level"] in ("ok", "warning", "error")
        assert bool(each["remedy"]) is (each["level"] != "ok"), each
        assert "\n" not in each["found"] + each["remedy"]
    shown = pbkv("doctor", *FREE)
    assert "block keys: as in every process" in shown.out


def test_a_port_that_is_taken_is_an_error_with_its_remedy(pbkv: Pbkv) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, found = findings(pbkv, "--set", f"metrics.port={port}")
    (problem,) = found["ports"]
    assert (code, problem["level"]) == (1, "error")
    assert problem["found"] == f"metrics.port: cannot listen on 127.0.0.1:{port}: the port is in use"
    assert problem["remedy"] == "set metrics.port to a free port, or to 0 for any"


def test_two_fields_with_one_port_are_told(pbkv: Pbkv) -> None:
    code, found = findings(pbkv, "--set", "metrics.port=26999", "--set", "otel.enabled=true", "--set", "otel.port=26999")
    assert (code, found["ports"][0]["found"]) == (1, "otel.port: 26999 is the port of metrics.port too")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    running = RedisServer.resolve("", host="127.0.0.1")
    yield running
    running.stop()


def test_redis_is_asked_for_version_memory_and_clock(pbkv: Pbkv, server: RedisServer) -> None:
    code, found = findings(pbkv, "--set", f"redis.url={server.url}")
    assert (code, [each["level"] for each in found["redis"] + found["redis memory"] + found["clock"]]) == (0, ["ok"] * 3)
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 100 << 20)
        client.config_set("maxmemory-policy", "allkeys-lru")
    code, found = findings(pbkv, "--set", f"redis.url={server.url}")
    (memory,) = found["redis memory"]
    assert (code, memory["level"]) == (1, "error")
    assert "maxmemory-policy is allkeys-lru" in memory["found"]


def test_a_redis_that_may_not_tell_the_time_is_a_warning(pbkv: Pbkv, server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.acl_setuser("default", enabled=True, commands=["-time"])
    code, found = findings(pbkv, "--set", f"redis.url={server.url}")
    assert (code, found["clock"][0]["level"], found["clock"][0]["remedy"]) == (0, "warning", "allow the user TIME")


def test_a_redis_that_is_lost_while_it_is_asked_is_an_error(
    pbkv: Pbkv, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pbkv_cluster.store.cluster_index.redis_check.check_redis", lambda url: server.stop())
    code, found = findings(pbkv, "--set", f"redis.url={server.url}")
    (problem,) = found["redis"]
    assert (code, problem["level"]) == (1, "error")
    assert "has answered, and does no more" in problem["found"]


def test_a_redis_that_does_not_answer_is_an_error_without_the_password(pbkv: Pbkv) -> None:
    code, found = findings(pbkv, "--set", "redis.url=redis://:s3cret@127.0.0.1:1")
    (problem,) = found["redis"]
    assert (code, problem["level"]) == (1, "error")
    assert "s3cret" not in problem["found"]


def test_a_cluster_s_members_are_looked_at_where_it_is_named(pbkv: Pbkv, endpoint: str) -> None:
    code, found = findings(pbkv, "--endpoint", endpoint)
    assert code == 1
    told = [each["found"] for each in found["cluster"]]
    assert "worker-1 is not reachable" in told
    assert "the index in Redis is not reachable" in told
    code, found = findings(pbkv, "--endpoint", "127.0.0.1:1")
    assert (code, found["cluster"][0]["level"]) == (1, "error")


def test_a_wrong_configuration_is_refused_before_anything_is_looked_at(pbkv: Pbkv) -> None:
    done = pbkv("doctor", "--set", "engine.gpu_blocks=many")
    assert (done.code, done.out) == (2, "")


def test_a_plain_installation_says_what_each_extra_would_bring() -> None:
    done = plain("doctor", *FREE, "--json", "-")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    extras = {each["remedy"] for each in found if each["check"] == "extras"}
    assert extras == {
        install_command(extra) for extra in ("server", "http", "kv-events", "otel", "dashboard", "top", "sidecar")
    }
    assert {each["check"]: each["level"] for each in found}["gpu"] == "warning"


@pytest.mark.parametrize(
    ("finding", "level", "words"),
    [
        (software.check_keys("00" * 16), Level.ERROR, "nothing that others have cached would be found"),
        (machine.check_shared_memory(64 << 20, GIB), Level.WARNING, "0.06 GiB"),
        (machine.check_shared_memory(0, GIB), Level.WARNING, "0.00 GiB"),
        (machine.check_shared_memory(GIB, 8 * GIB), Level.OK, "8.0 GiB"),
        (machine.check_files(1024, 1024), Level.WARNING, "1,024 of open files"),
        (machine.check_files(resource.RLIM_INFINITY, resource.RLIM_INFINITY), Level.OK, "any number"),
        (machine.check_memlock(64 << 10, GIB, pins=True), Level.WARNING, "host tiers have 1.0 GiB"),
        (machine.check_memlock(64 << 10, GIB, pins=False), Level.OK, "nothing is pinned"),
        (machine.check_memlock(resource.RLIM_INFINITY, GIB, pins=True), Level.OK, "any amount"),
        (network.clock_finding(0.5, "r"), Level.OK, "0.50 s behind"),
        (gpu.check_cupy(0, ""), Level.OK, "nor needed"),
        (gpu.check_cupy(-1, ""), Level.WARNING, "no host tier"),
        (gpu.check_cupy(4096, ""), Level.ERROR, "no worker will start"),
        (gpu.check_cupy(4096, "14.2.0"), Level.OK, "CuPy 14.2.0"),
        (network.clock_finding(-30.0, "r"), Level.WARNING, "30.00 s ahead of"),
    ],
)
def test_judgements(finding: Finding, level: Level, words: str) -> None:
    assert (finding.level, words in finding.found) == (level, True), finding
    assert bool(finding.remedy) is (level is not Level.OK)


@pytest.mark.parametrize(
    ("flags", "errors"),
    [
        ({"cluster.workers": 2}, ["cupy", "workers"]),
        ({"cluster.workers": 0}, ["cupy"]),
        ({"cluster.workers": 2, "cluster.address": "10.0.0.1:6379"}, ["cupy"]),
        ({"cluster.workers": 2, "engine.device": "cpu"}, []),
    ],
)
def test_what_keeps_workers_from_starting_on_gpus_is_an_error(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], errors: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: SimpleNamespace(name="GPU", total_memory=GIB))
    monkeypatch.setattr(gpu, "is_installed", lambda package: package != "cupy")
    found = gpu.check_gpu(load(flags={"engine.host_blocks": 4096, **flags}).config)
    assert sorted(each.check for each in found if each.level is Level.ERROR) == errors


@pytest.mark.parametrize(
    ("facts", "levels"),
    [
        ({"redis_version": "5.0.7"}, [Level.ERROR, Level.OK]),
        ({"redis_version": "8.0.0", "maxmemory": 100, "used_memory": 90, "maxmemory_policy": "noeviction"}, ["ok", "warning"]),
        ({"redis_version": "6.2.0", "maxmemory": 100, "used_memory": 9, "maxmemory_policy": "noeviction"}, ["ok", "ok"]),
        ({}, [Level.WARNING]),
    ],
)
def test_what_redis_tells_is_judged(facts: dict[str, Any], levels: list[str]) -> None:
    assert [each.level for each in network.redis_findings(facts, "r")] == levels
