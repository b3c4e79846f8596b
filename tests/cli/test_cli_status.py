"""`pbkv status`: rates with denominators, lost workers, JSON."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from pbkv_cluster.cli.serving.guard_lines import guard_line
from pbkv_cluster.cli.serving.status import degraded, print_status, status_json
from pbkv_cluster.cli.serving.status_lines import member_line, nodes_line, reasons_line
from pbkv_cluster.rpc.v1 import store_pb2, workflow_pb2
from tests.cli.conftest import Pbkv


def line(text: str, *words: str) -> str:
    """The one line that contains all the words."""
    (found,) = [row for row in text.splitlines() if all(word in row for word in words)]
    return found


def test_shows_workers_tiers_and_lost_workers(pbkv: Pbkv, endpoint: str) -> None:
    out = pbkv("status", "--endpoint", endpoint).out
    assert "predictor reachable, index not reachable, 3 open workflows, 2 running steps" in out
    assert "gpu 1,500 of 4,096 (25% taken)" in line(out, "worker-0", "127.0.0.1:1", "2 running", "pbkv-paper")
    assert "not reachable" in line(out, "worker-1", "127.0.0.1:2")


def test_fits_a_terminal_of_80_columns(pbkv: Pbkv, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = pbkv("status", "--endpoint", endpoint).out
    assert "gpu 1,500 of 4,096" in line(out, "worker-0", "127.0.0.1:1", "2 running", "pbkv-paper")
    assert "60.0 % of 20,000" in line(out, "delivered")


def test_shows_rates_with_their_denominators(pbkv: Pbkv, endpoint: str) -> None:
    out = pbkv("status", "--endpoint", endpoint).out
    assert "80.0 % of 20,000" in line(out, "available")
    assert "65.0 % of 20,000" in line(out, "captured")
    delivered = line(out, "delivered")
    assert "60.0 % of 20,000" in delivered
    assert "gpu 50.0 % of 20,000, host 10.0 % of 20,000" in delivered


def test_shows_what_does_not_work_at_members_that_serve(pbkv: Pbkv, endpoint: str) -> None:
    problem = "the state /s cannot be saved: No space left on device"
    assert problem in line(pbkv("status", "--endpoint", endpoint).out, "predictor: ")
    status = json.loads(pbkv("status", "--endpoint", endpoint, "--json", "-").out)
    assert status["problems"] == [{"member": "predictor", "problem": problem}]


def test_shows_what_spans_were_not_understood_which_is_no_fault_of_the_cluster() -> None:
    response = workflow_pb2.GetClusterStatusResponse(index_reachable=True, predictor_reachable=True)
    response.workers.add(worker_id="worker-0", reachable=True)
    times = {"operation_unknown": 1234, "agent_unknown": 2, "span_duplicate": 7}
    reasons = response.reasons.add(member="otel", times=times)
    assert reasons_line(reasons) == (
        "otel: dropped or not understood so far: agent_unknown 2, operation_unknown 1,234; its log says why"
    )
    assert status_json(response)["reasons"] == {"otel": times}
    assert degraded(response) == []
    shown = StringIO()
    print_status(response, Console(file=shown, width=120))
    assert reasons_line(reasons) in shown.getvalue()
    assert "7" in line(shown.getvalue(), "otel", "span_duplicate")
    reasons.times.clear()
    reasons.times["workflow_silent"] = 5
    assert reasons_line(reasons) == ""


def test_shows_decisions(pbkv: Pbkv, endpoint: str) -> None:
    out = pbkv("status", "--endpoint", endpoint).out
    assert "31" in line(out, "gateway", "route:prefix")
    assert "12" in line(out, "worker-0", "evict:retired")


def test_shows_what_lru_would_have_hit(pbkv: Pbkv, endpoint: str) -> None:
    out = pbkv("status", "--endpoint", endpoint).out
    shown = line(out, "worker-0", "guard")
    assert "follows the policy; of 20,000 prompt tokens the cache had 72.0 % (52.0 % on the GPU)" in shown
    assert "LRU would have had 61.0 % (41.2 % on the GPU), the policy 73.0 % (52.9 % on the GPU)" in shown
    assert shown.endswith("+1,234.6 s saved over LRU")
    assert out.count("guard: ") == 1, "a worker without a guard has no such line"


def test_shows_how_much_was_learnt(pbkv: Pbkv, endpoint: str) -> None:
    out = pbkv("status", "--endpoint", endpoint).out
    assert "learnt from 1,234 workflows that have ended, by 7 updates" in line(out, "worker-0", "updates")
    assert out.count("learnt from") == 1


def test_says_where_logs_are(pbkv: Pbkv, endpoint: str) -> None:
    out = pbkv("status", "--endpoint", endpoint).out
    assert "logs in /var/ray/logs of each node, the gateway's in /var/ray/logs/a.err" in out
    assert json.loads(pbkv("status", "--endpoint", endpoint, "--json", "-").out)["log_path"] == "/var/ray/logs/a.err"


def test_says_where_http_clients_connect(pbkv: Pbkv, endpoint: str) -> None:
    assert "OpenAI's API at http://127.0.0.1:26180/v1" in pbkv("status", "--endpoint", endpoint).out
    assert json.loads(pbkv("status", "--endpoint", endpoint, "--json", "-").out)["http_address"] == "127.0.0.1:26180"


def test_json_can_go_to_a_file_as_everywhere(pbkv: Pbkv, endpoint: str, tmp_path: Path) -> None:
    target = tmp_path / "status.json"
    done = pbkv("status", "--endpoint", endpoint, "--json", str(target))
    assert "3 open workflows" in done.out, "the tables are printed as well"
    assert json.loads(target.read_text())["open_workflows"] == 3


def test_shows_that_a_guard_has_fallen_back() -> None:
    assert "LRU evicts" in guard_line(store_pb2.GuardStat(lru_active=True, prompt_tokens=10))
    assert guard_line(store_pb2.GuardStat()) == "guard: follows the policy"


def test_json_contains_numbers(pbkv: Pbkv, endpoint: str) -> None:
    written = json.loads(pbkv("status", "--endpoint", endpoint, "--json", "-").out)
    assert written["workers"][0]["tiers"]["gpu"]["capacity_blocks"] == 4096
    assert [worker["reachable"] for worker in written["workers"]] == [True, False]
    assert written["totals"]["delivered_tokens"] == {"gpu": 10_000, "host": 2_000}
    assert (written["totals"]["available_rate"], written["totals"]["delivered_rate"]) == (0.8, 0.6)
    assert [worker["guard"] is None for worker in written["workers"]] == [False, True]
    assert written["workers"][0]["guard"] == {
        "lru_active": False,
        "switches": 0,
        "prompt_tokens": 20_000,
        "saved_s": 1234.56,
        "evicted_by_lru": 0,
        "evicted_by_policy": 12,
        "hit_tokens": 14_400,
        "hit_gpu_tokens": 10_400,
        "lru_hit_tokens": 12_200,
        "lru_hit_gpu_tokens": 8_240,
        "policy_shadow_hit_tokens": 14_600,
        "policy_shadow_hit_gpu_tokens": 10_580,
    }
    assert written["decisions"] == {"route:prefix": 31}


def test_a_cluster_that_has_done_nothing_has_no_rates() -> None:
    totals = status_json(workflow_pb2.GetClusterStatusResponse())["totals"]
    assert totals["available_rate"] is None
    assert totals["prompt_tokens"] == 0


def test_check_names_what_does_not_serve_and_exits_with_1(pbkv: Pbkv, endpoint: str) -> None:
    done = pbkv("status", "--endpoint", endpoint, "--check")
    assert done.code == 1
    assert done.err.splitlines() == [
        "pbkv: the index in Redis is not reachable",
        "pbkv: worker-1 is not reachable",
        "pbkv: predictor: the state /s cannot be saved: No space left on device",
    ]


def test_without_check_a_degraded_cluster_is_a_success(pbkv: Pbkv, endpoint: str) -> None:
    assert pbkv("status", "--endpoint", endpoint).code == 0


def test_a_member_that_is_being_restarted_is_degraded() -> None:
    member = workflow_pb2.GetClusterStatusResponse.Member(name="worker-1", restarts=2, last_failure="it was killed")
    response = workflow_pb2.GetClusterStatusResponse(index_reachable=True, predictor_reachable=True, members=[member])
    response.workers.add(worker_id="worker-0", reachable=True)
    assert degraded(response) == ["worker-1 is being restarted: it was killed"]
    assert member_line(member) == "worker-1: restarted 2 times and is not back, last because it was killed"
    response.members[0].up = True
    assert degraded(response) == []
    assert status_json(response)["members"] == [
        {"name": "worker-1", "up": True, "restarts": 2, "last_failure": "it was killed"}
    ]


def test_a_cluster_without_workers_is_degraded() -> None:
    response = workflow_pb2.GetClusterStatusResponse(index_reachable=True, predictor_reachable=False)
    assert degraded(response) == ["the predictor is not reachable", "there is no worker"]


def test_a_member_that_starts_for_the_first_time_is_degraded_until_it_serves() -> None:
    response = workflow_pb2.GetClusterStatusResponse(index_reachable=True, predictor_reachable=True)
    response.workers.add(worker_id="worker-0", reachable=True)
    response.members.add(name="worker-1", restarts=0)
    assert degraded(response) == ["worker-1 is being started"]
    response.members[0].last_failure = "no memory"
    assert degraded(response) == ["worker-1 is being started: no memory"]


def test_nodes_are_shown_where_there_is_something_to_tell() -> None:
    response = workflow_pb2.GetClusterStatusResponse()
    assert nodes_line(response) == ""
    response.nodes.add(node_id="n0", host="10.0.0.1", state="serving")
    assert nodes_line(response) == ""
    response.nodes.add(node_id="n1", host="10.0.0.2", state="drained", reason="new memory")
    assert nodes_line(response) == "nodes: 10.0.0.1 serving, 10.0.0.2 drained (new memory)"
    assert status_json(response)["nodes"][1] == {
        "node_id": "n1",
        "host": "10.0.0.2",
        "state": "drained",
        "reason": "new memory",
    }
