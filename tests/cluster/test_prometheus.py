"""A real Prometheus finds the members of a real cluster, follows them, and answers every query of the dashboard."""

import os
import signal
from pathlib import Path
from random import Random

import pytest

from pbkv_cluster.client import Client
from pbkv_cluster.cluster.local import LocalCluster
from tests.deploy.dashboard import queries
from tests.deploy.prometheus import DEPLOY, Prometheus, prometheus
from tests.polling import wait_for

pytestmark = pytest.mark.slow  # needs Prometheus

MEMBERS = {"gateway", "predictor", "otel", "host-store-0", "worker-0", "worker-1", "head"}
RARE = {"Scheduler"}  # nothing need have happened there


def config(url: str) -> str:
    """That of deploy/, for this cluster, and faster."""
    text = (DEPLOY / "prometheus.yaml").read_text()
    for before, after in (
        ("http://127.0.0.1:26161/discovery", url),
        ("refresh_interval: 10s", "refresh_interval: 1s"),
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("alerts.yaml", str(DEPLOY / "alerts.yaml")),
    ):
        assert before in text
        text = text.replace(before, after)
    return text


def instances(server: Prometheus) -> set[str]:
    return {series["metric"]["instance"] for series in server.query('up{job="pbkv"} == 1')}


def work(cluster: LocalCluster, seed: int) -> None:
    """Runs workflows whose prompts, all together, are more than the cluster's GPU tiers hold."""
    with Client(cluster.gateway_address) as client:
        for number in range(4):
            with client.start_workflow(workload="trips") as workflow:
                random = Random(f"{seed} {number}")
                prompt = [random.randrange(5, 4000) for _ in range(1000)]
                for agent in ("planner", "writer", "critic"):
                    workflow.run(agent=agent, prompt=prompt, max_tokens=4, ignore_eos=True)
                    prompt = [*prompt, *range(20, 60)]


def test_prometheus_answers_every_query_and_follows_a_restart(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.pids()
    with prometheus(config(cluster.discovery_url), tmp_path) as server:
        wait_for(lambda: instances(server) == MEMBERS, 120, lambda: f"found {instances(server)}")
        steps = 'sum(pbkv_steps_total{outcome="finished"})'
        before = float(server.query(steps)[0]["value"][1])
        for round_ in range(8):  # so that the rates have something to show
            work(cluster, round_)
        wait_for(lambda: float(server.query(steps)[0]["value"][1]) == before + 8 * 12, 60)
        empty = []
        for title, expression in queries():
            asked = expression.replace("$cluster", cluster.name).replace("$__rate_interval", "10m")
            assert "$" not in asked, f"{title} has a variable that there is not: {asked}"
            if not server.query(asked) and title not in RARE:
                empty.append((title, asked))
        assert empty == []

        os.kill(cluster.pids()["predictor"], signal.SIGKILL)
        restarts = 'pbkv_member_restarts_total{member="predictor"} >= 1'
        wait_for(lambda: bool(server.query(restarts)), 120)
        cluster.pids(120)
        up = 'changes(process_start_time_seconds{instance="predictor"}[10m]) >= 1 and on (instance) up == 1'
        wait_for(lambda: bool(server.query(up)), 120, lambda: f"{server.query('up')}")
