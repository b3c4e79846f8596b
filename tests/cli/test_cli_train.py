"""`pbkv train`: a predictor service starts from the state that it writes."""

import json
from pathlib import Path

import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.predictor_service.access.prior import load_prior
from pbkv_cluster.predictor_service.predictor.expert_predictor import ExpertPredictor
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.predictor_service.state import encoding
from pbkv_cluster.predictor_service.state.file import access_path, read_state
from pbkv_cluster.reuse.model.access_model import KIND, VERSION, AccessUpdate
from pbkv_cluster.reuse.model.access_models import train
from pbkv_cluster.simulator.prediction.training import trained_state
from pbkv_cluster.simulator.traces.files import load_trace
from pbkv_cluster.simulator.workload.access_logs import access_logs
from tests.cli.agent_traces import write_trace
from tests.cli.conftest import Pbkv


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    """Four workflows of three steps."""
    return write_trace(tmp_path / "tiny.jsonl.gz")


async def test_a_predictor_service_starts_from_what_it_writes(pbkv: Pbkv, trace_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "trained"
    done = pbkv("train", str(trace_file), "--out", str(out), "--json", str(tmp_path / "result.json"))
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "result.json").read_text())
    assert (told["workflows"], told["steps"], told["state_path"]) == (4, 12, str(out / "predictor.state"))
    assert "Learnt from 4 workflows, 12 steps, in " in done.out
    state = out / "predictor.state"
    assert f"pbkv serve --set predictor.state_path={state}" in done.out
    assert sorted(path.name for path in out.iterdir()) == ["predictor.state", "predictor.state.access"]

    workflows = load_trace(trace_file).workflows
    agents = read_state(state, ExpertPredictor.kind, ExpertPredictor.version)
    trained = trained_state(PredictorConfig(), workflows)
    assert agents == trained.state
    expected = train(access_logs(workflows, trained.workloads), load_prior("default"))
    models = encoding.from_bytes(read_state(access_path(state), KIND, VERSION))["models"]
    for update, taught in zip([AccessUpdate.from_bytes(each.tobytes()) for each in models], expected.export(), strict=True):
        assert (update.workload, update.contexts, update.workflows) == (taught.workload, taught.contexts, 4)

    server = PredictorServer(PredictorConfig(), state_path=state)
    await server.start("127.0.0.1", 0)
    assert server.service.predictor.dump() == agents
    await server.stop()
    assert not list(out.glob("*.refused"))


def test_an_existing_state_is_replaced_only_by_force(pbkv: Pbkv, trace_file: Path, tmp_path: Path) -> None:
    assert pbkv("train", str(trace_file), "--out", str(tmp_path)).code == 0
    state = tmp_path / "predictor.state"
    before = state.read_bytes(), access_path(state).read_bytes()
    for missing in (None, state):
        if missing is not None:
            missing.unlink()
        refused = pbkv("train", str(trace_file), "--out", str(tmp_path))
        assert refused.code == 2
        assert "exists already; --force replaces it" in refused.err
    access_path(state).write_bytes(b"other")
    assert pbkv("train", str(trace_file), "--out", str(tmp_path), "--force").code == 0
    assert (state.read_bytes(), access_path(state).read_bytes()) == before


def test_bad_input_is_reported_before_any_work(pbkv: Pbkv, trace_file: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    folder = tmp_path / "blocked"
    (folder / "predictor.state").mkdir(parents=True)
    for arguments, problem in (
        ((str(trace_file), "--out", str(trace_file)), "is not a folder"),
        ((str(trace_file), "--out", str(folder), "--force"), "it is a folder"),
        ((str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "x")), "none.jsonl"),
        ((str(empty), "--out", str(tmp_path / "x")), "empty"),
    ):
        done = pbkv("train", *arguments)
        assert done.code == 2, arguments
        assert problem in done.err
    assert not (tmp_path / "x").exists()


def test_held_back_tasks_show_the_gain_of_training(pbkv: Pbkv, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "app.jsonl.gz", workflows=20)
    done = pbkv("train", str(trace), "--out", str(tmp_path / "a"), "--hold-back", "0.3")
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.split()[:1] == ["app"]]
    untrained, trained = (float(share) for share in line.replace("%", "").split()[2:4])
    assert untrained < trained == 100.0
    plain = pbkv("train", str(trace), "--out", str(tmp_path / "b"), "--hold-back", "0")
    assert "held back" not in plain.out
    name = "predictor.state"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), "in the end it learns from all tasks"


def test_too_few_tasks_to_hold_any_back(pbkv: Pbkv, tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "app.jsonl.gz", workflows=1)
    done = pbkv("train", str(trace), "--out", str(tmp_path / "a"))
    assert done.code == 0, done.err
    assert "too few tasks to hold any back" in done.out
    refused = pbkv("train", str(trace), "--out", str(tmp_path / "b"), "--hold-back", "1")
    assert refused.code == 2
    assert "--hold-back: must be at least 0 and below 1, got 1" in refused.err
