"""`pbkv replay`, `pbkv demo` and `pbkv serve`, with a stand-in for the cluster."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pbkv_cluster.core.errors import NotFound
from tests.cli.conftest import Pbkv
from tests.cli.stand_in_cluster import StandInCluster
from tests.polling import wait_for
from tests.simulator.recording_gateway import STEP_S, Call, RecordingGateway

WHICH = ("mean", "p50", "p95")


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Three workflows of two steps."""
    path = tmp_path / "trace.jsonl"
    segment = {"kind": "system", "id": "system", "tokens": 64}
    with path.open("w") as file:
        for workflow in ("a", "b", "c"):
            for step in (0, 1):
                line = {
                    "workflow_id": workflow,
                    "workload": "unit",
                    "step": step,
                    "agent": "coder",
                    "prompt_segments": [segment],
                }
                file.write(
                    json.dumps({**line, "prompt_tokens": 64, "output_tokens": 8, "output_id": f"{workflow}{step}"}) + "\n"
                )
    return str(path)


def test_replays_on_a_running_cluster(pbkv: Pbkv, gateway: RecordingGateway, endpoint: str, trace: str) -> None:
    done = pbkv("replay", trace, "--endpoint", endpoint, "--workflows", "2", "--scale-tokens", "0.5", "--max-output", "3")
    assert done.code == 0, done.err
    assert sorted(name.partition("#")[0] for name in gateway.steps) == ["a", "b"]
    for request in (request for steps in gateway.steps.values() for request in steps):
        assert len(request.prompt.token_ids.data) == 4 * 32
        assert len(request.sampling.forced_output.data) == 4 * 3
    (row,) = [row for row in done.out.splitlines() if "available (infinite cache)" in row]
    assert "75.0 %" in row


def test_the_table_leads_with_tokens_and_seconds(pbkv: Pbkv, endpoint: str, trace: str) -> None:
    shown = pbkv("replay", trace, "--endpoint", endpoint).out
    rows = ["recomputed tokens"]
    rows += [f"{what}, {which}" for what in ("time to first token", "step latency", "workflow latency") for which in WHICH]
    rows += ["delivered from gpu", "delivered from host", "delivered (used)", "captured (in some tier)"]
    rows += ["available (infinite cache)", "prompt tokens", "steps"]
    places = [shown.find(f"│ {row} ") for row in rows]
    assert -1 not in places
    assert places == sorted(places)
    (row,) = [row for row in shown.splitlines() if "step latency, p95" in row]
    assert f"{1000 * STEP_S:.0f} ms" in row


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_open_workflows(
    gateway: RecordingGateway, endpoint: str, trace: str, how: signal.Signals
) -> None:
    gateway.hold_until = 99
    command = [sys.executable, "-m", "pbkv_cluster.cli", "replay", trace, "--endpoint", endpoint]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell without job control starts background processes with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_for(lambda: len(gateway.steps) == 3, 60)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [calls[-1] for calls in gateway.calls.values()] == [Call("end")] * 3


def test_a_trace_can_be_replayed_twice_on_one_cluster(pbkv: Pbkv, gateway: RecordingGateway, endpoint: str, trace: str) -> None:
    for _ in range(2):
        assert pbkv("replay", trace, "--endpoint", endpoint).code == 0
    assert len(gateway.steps) == 6


@pytest.mark.parametrize(
    "flag",
    [["--policy", "lru"], ["--workers", "2"], ["--model", "x"], ["--gpu-blocks", "9"], ["--config", "x"], ["--set", "a.b=1"]],
)
def test_refuses_to_configure_a_running_cluster(pbkv: Pbkv, trace: str, flag: list[str]) -> None:
    done = pbkv("replay", trace, "--endpoint", "127.0.0.1:1", *flag)
    assert done.code == 2
    assert done.err == f"pbkv: {flag[0]}: sets up a cluster, but --endpoint 127.0.0.1:1 names one that runs already\n"


def test_failures_are_reported_and_counted(pbkv: Pbkv, trace: str, clusters: list[StandInCluster], tmp_path: Path) -> None:
    written = tmp_path / "out.json"
    StandInCluster.failures["b", "1"] = NotFound("gone")
    done = pbkv("replay", trace, "--json", str(written))
    assert done.code == 1
    assert "pbkv: failed: b, step 1: gone" in done.err
    assert json.loads(written.read_text())["failures"] == [{"workflow": "b", "step": 1, "error": "gone"}]


def test_sets_up_its_own_cluster(pbkv: Pbkv, trace: str, clusters: list[StandInCluster]) -> None:
    done = pbkv(
        "replay", trace, "--policy", "lru", "--workers", "2", "--gpu-blocks", "99", "--set", "engine.threads=2", "--json", "-"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 6
    (cluster,) = clusters
    config = cluster.config
    assert (config.cache.policy, config.cluster.workers, config.engine.gpu_blocks, config.engine.threads) == ("lru", 2, 99, 2)
    assert config.engine.allow_forced_output
    assert StandInCluster.running == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.jsonl"], "cannot read missing.jsonl: No such file or directory"),
        (["TRACE", "--scale-tokens", "2"], "scale_tokens: must be above 0 and at most 1, got 2.0"),
        (["TRACE", "--vocab-size", "3"], "vocab_size: "),
        (["TRACE", "--time-scale", "-1"], "time_scale: "),
        (["TRACE", "--json", "/no/such/folder/x"], "--json: cannot write /no/such/folder/x"),
        (["TRACE", "--gpu-blocks", "-3"], "engine.gpu_blocks (from flag)"),
    ],
)
def test_bad_input_is_one_clear_line_before_anything_starts(
    pbkv: Pbkv, trace: str, clusters: list[StandInCluster], args: list[str], message: str
) -> None:
    done = pbkv("replay", *(trace if arg == "TRACE" else arg for arg in args))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert clusters == []


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pbkv_cluster.cli.serving.demo.TIME_SCALE", 0.0)


@pytest.mark.usefixtures("no_pauses")
def test_demo_compares_policies_on_the_same_work(pbkv: Pbkv, clusters: list[StandInCluster]) -> None:
    done = pbkv("demo", "--workflows", "3", "--concurrency", "2", "--seed", "5")
    assert done.code == 0, done.err
    assert [cluster.config.cache.policy for cluster in clusters] == ["lru", "pbkv"]
    first, second = (
        {name: [(step.agent_id, step.prompt, step.sampling) for step in steps] for name, steps in cluster.gateway.steps.items()}
        for cluster in clusters
    )
    assert first == second
    assert len(first) == 3
    assert "pbkv / lru" in done.out
    assert "a small model on this machine's CPU" in done.out


@pytest.mark.usefixtures("no_pauses")
def test_demo_changes_only_the_policy(pbkv: Pbkv, clusters: list[StandInCluster]) -> None:
    done = pbkv("demo", "--workflows", "1", "--policies", "pbkv-paper, retired-lru", "--json", "-")
    assert set(json.loads(done.out)) == {"pbkv-paper", "retired-lru"}
    dumps = [cluster.config.model_dump() for cluster in clusters]
    assert [dump["cache"].pop("policy") for dump in dumps] == ["pbkv-paper", "retired-lru"]
    assert dumps[0] == dumps[1]
    assert clusters[0].config.cluster.workers == 2


@pytest.mark.parametrize("policies", ["", "lru,", "lru,lru"])
def test_demo_refuses_policies_that_cannot_be_compared(pbkv: Pbkv, clusters: list[StandInCluster], policies: str) -> None:
    done = pbkv("demo", "--policies", policies)
    assert (done.code, done.err.startswith("pbkv: --policies: ")) == (2, True)
    assert clusters == []


def test_serve_prints_how_to_submit_and_waits(pbkv: Pbkv, clusters: list[StandInCluster]) -> None:
    done = pbkv("serve", "--workers", "3", "--port", "0", "--policy", "lru", "--model", "m", "--address", "auto")
    assert done.code == 0, done.err
    (cluster,) = clusters
    config = cluster.config
    assert (config.cluster.workers, config.gateway.port, config.cache.policy) == (3, 0, "lru")
    assert (config.model.path, config.cluster.address) == ("m", "auto")
    assert cluster.waited
    assert StandInCluster.running == 0
    assert f"pbkv submit --endpoint {cluster.gateway_address}" in done.out
    assert f"dashboard  {cluster.dashboard_url}" in done.out


@pytest.mark.parametrize(("setting", "why"), [("dashboard.enabled=false", ""), ("metrics.enabled=false", "metrics.enabled")])
def test_serve_starts_without_a_dashboard(pbkv: Pbkv, clusters: list[StandInCluster], setting: str, why: str) -> None:
    done = pbkv("serve", "--set", setting)
    assert (done.code, clusters[0].dashboard_url) == (0, "")
    assert ("no dashboard" in done.err) == bool(why)
    assert why in done.err
    assert "dashboard  " not in done.out
