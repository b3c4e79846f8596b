"""The dashboard of a real cluster over HTTP: its figures are those of metrics and status; bad requests get a clear 4xx."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbkv_cluster.client import Client
from tests.dashboard.small_cluster import SmallCluster, run_workflows, tokens

HOSTILE = "<img src=x onerror=alert(1)>"


@contextmanager
def snapshots(cluster: SmallCluster) -> Iterator[Iterator[dict[str, Any]]]:
    with urllib.request.urlopen(f"{cluster.url}api/events", timeout=60) as stream:
        yield (json.loads(line[6:]) for line in stream if line.startswith(b"data: "))


def get(cluster: SmallCluster, path: str) -> Any:
    with urllib.request.urlopen(cluster.url + path, timeout=60) as answer:
        return json.load(answer)


def test_what_is_shown_equals_status(cluster: SmallCluster) -> None:
    run_workflows(cluster.gateway_address, 3)
    with Client(cluster.gateway_address) as client:
        status = client.status()
    with snapshots(cluster) as each:
        shown = next(found for found in each if found["totals"] and found["totals"]["steps"] == status.totals.steps)
    totals = status.totals
    assert shown["totals"]["prompt"] == totals.prompt_tokens
    assert shown["totals"]["available"] == totals.available_tokens > 0
    assert sum(shown["totals"]["delivered"].values()) == sum(tier.tokens for tier in totals.delivered) > 0
    (worker,) = shown["workers"]
    gpu = status.workers[0].store.tiers[0]
    assert worker["tiers"]["gpu"]["capacity"] == gpu.capacity_blocks * gpu.block_bytes
    assert worker["tiers"]["gpu"]["used"] == gpu.used_blocks * gpu.block_bytes > 0
    disk = status.workers[0].store.tiers[2]
    assert worker["tiers"]["disk"]["capacity"] == disk.capacity_blocks * disk.block_bytes > 0
    assert worker["prefetch"].keys() == {"loaded", "used", "wasted", "cancelled"}
    assert worker["staged"].keys() == worker["prefetch"].keys()
    assert {member["name"] for member in shown["members"]} == {"gateway", "predictor", "host-store-0", "worker-0", "head"}
    assert all(member["up"] and member["answers"] for member in shown["members"])
    assert status.dashboard_url == cluster.url
    window = get(cluster, "api/history?seconds=3600")["window"]
    assert (window["steps"], window["prompt"]) == (totals.steps, totals.prompt_tokens)
    assert window["guard_prompt"] == status.workers[0].store.guard.prompt_tokens


def test_an_open_workflow_is_shown_with_its_path_and_explained(cluster: SmallCluster) -> None:
    name = f"flow {HOSTILE} &?#/"
    with Client(cluster.gateway_address) as client, client.start_workflow(name, workload=HOSTILE) as workflow:
        for agent in ("planner", HOSTILE):
            workflow.run(agent=agent, prompt=tokens(64, 5), max_tokens=2)
        with snapshots(cluster) as each:
            shown = next(flow for found in each for flow in found["workflows"]["shown"] if flow["steps"] == 2)
        assert (shown["id"], shown["workload"], shown["path"]) == (name, HOSTILE, ["planner", HOSTILE])
        detail = get(cluster, f"api/workflow?{urllib.parse.urlencode({'id': name})}")
        assert [step["prompt"] for step in detail["steps_kept"]] == [64, 64]
        assert sum(run["tokens"] for run in detail["cached"]) > 0
        run = detail["cached"][0]
        assert (run["last"]["what"], run["last"]["code"]) == ("stored", "compute")
        assert {decision["code"] for decision in detail["decisions"]} == {"compute"}
        block = get(cluster, f"api/block?key={run['key']}")
        assert (block["key"], [place["tier"] for place in block["places"]]) == (run["key"], ["gpu"])
        assert block["decisions"][0]["why"] == "computed by a step, and entered on the GPU"
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(cluster, f"api/workflow?{urllib.parse.urlencode({'id': name})}")
    assert caught.value.code == 404


def test_memory_is_told_by_who_uses_it(cluster: SmallCluster) -> None:
    prompt = tokens(64, 77)
    with Client(cluster.gateway_address) as client, client.start_workflow() as one, client.start_workflow() as two:
        for workflow in (one, two):
            workflow.run(agent="writer", prompt=prompt + tokens(32, 78 + (workflow is two)), max_tokens=2)
        block_bytes = client.status().workers[0].store.tiers[0].block_bytes
        with snapshots(cluster) as each:
            shown = next(found["workers"][0] for found in each if found["workers"][0]["tiers"]["gpu"]["shared"])
    assert shown["tiers"]["gpu"]["shared"] == 64 // 16 * block_bytes
    assert shown["tiers"]["gpu"]["retired"] + shown["tiers"]["gpu"]["shared"] <= shown["tiers"]["gpu"]["used"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        *((f"api/history?seconds={text}", 400) for text in ("0", "-1", "nan", "inf", "1e99", "x", "")),
        ("api/workflow", 400),
        *((f"api/block?key={text}", 400) for text in ("", "xyz", "0" * 33, "%3Cscript%3E")),
        (f"api/block?key={'00' * 16}", 404),
        (f"api/workflow?id={'x' * 300}", 400),
        (f"api/workflow?id={'x' * 60_000}", 400),
        ("nothing", 404),
        ("static/../server.py", 404),
        ("static/%2e%2e/server.py", 404),
    ],
)
def test_a_bad_request_is_refused(cluster: SmallCluster, path: str, code: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(cluster, path)
    assert caught.value.code == code
    assert "Traceback" not in caught.value.read().decode()


@settings(max_examples=150, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(["api/history", "api/workflow", "api/block", "", "static/main.js"]),
    name=st.sampled_from(["seconds", "id", "key", "x"]),
    value=st.binary(max_size=8)
    | st.sampled_from(
        [b"\0", b"\xff", b"\xed\xa0\x80", b"1e-320", b"5e-324", b"1_0", b" 7 ", b"0" * 32, b"f" * 32, b"x" * 9000]
    )
    | st.floats().map(lambda number: str(number).encode()),
    times=st.integers(1, 3),
)
def test_no_query_is_a_defect(cluster: SmallCluster, path: str, name: str, value: bytes, times: int) -> None:
    query = "&".join([f"{name}={urllib.parse.quote_from_bytes(value)}"] * times)
    answer = requests.get(f"{cluster.url}{path}?{query}", timeout=60)
    assert answer.status_code < 500, answer.text


@settings(max_examples=50, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(query=st.binary(max_size=8))
def test_discovery_and_metrics_take_any_query(cluster: SmallCluster, query: bytes) -> None:
    with Client(cluster.gateway_address) as client:
        discovery = client.status().discovery_url
    for url in (discovery, discovery.removesuffix("discovery") + "metrics"):
        assert requests.get(f"{url}?{urllib.parse.quote_from_bytes(query)}", timeout=60).status_code < 500


def test_every_answer_forbids_foreign_scripts(cluster: SmallCluster) -> None:
    for path in ("", "static/main.js", "api/history"):
        with urllib.request.urlopen(cluster.url + path, timeout=60) as answer:
            policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy


def test_history_outlives_the_dashboard(cluster: SmallCluster) -> None:
    run_workflows(cluster.gateway_address, 1, seed=100)
    before = get(cluster, "api/history?seconds=3600")["window"]["prompt"]
    cluster.stop("dashboard")
    cluster.start("dashboard")
    with snapshots(cluster) as each:
        next(each)
    assert get(cluster, "api/history?seconds=3600")["window"]["prompt"] >= before > 0
