"""The prior: the one that ships, and which files are refused."""

from pathlib import Path

import numpy as np
import pytest

from pbkv_cluster.core.config import PredictorConfig
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.predictor_service.access.prior import PACKAGED, PRIOR_KIND, load_prior, save_prior
from pbkv_cluster.predictor_service.server import PredictorServer
from pbkv_cluster.predictor_service.state.file import write_state
from pbkv_cluster.reuse.model import access_model
from pbkv_cluster.reuse.model.access_model import VERSION, AccessModel
from tests.reuse.taught_models import contents, taught
from tests.reuse.workflow_logs import Step, record

MODEL = taught([record([Step("planner", (1,), (2,)), Step("coder", (1, 2, 3))]).steps])


def test_the_prior_that_ships_is_small_and_names_nobody() -> None:
    prior = load_prior(PredictorConfig().prior).export()
    assert PACKAGED.stat().st_size < 200_000
    assert len(prior.rows) > 1000
    assert prior.contexts == (), "next events have names"
    assert prior.at_risk.max() < 1.5, "few workflows outweigh it"
    assert (prior.weights == AccessModel().hazard.weights).all()


def test_a_prior_that_was_saved_is_read_and_off_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "own.prior"
    save_prior(path, MODEL)
    assert contents(load_prior(str(path))) == contents(MODEL)
    assert contents(load_prior("off")) == contents(AccessModel())


@pytest.mark.parametrize(
    ("kind", "version", "payload", "why"),
    [
        (PRIOR_KIND, VERSION + 1, b"", f"has version {VERSION + 1} of the access-prior state; this program reads {VERSION}"),
        ("access", VERSION, b"", "holds the state of the predictor 'access', not of 'access-prior'"),
        (PRIOR_KIND, VERSION, b"{}", "not an access model"),
        (PRIOR_KIND, VERSION, MODEL.export(workload="app").to_bytes(), "it is the model of a workload"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, kind: str, version: int, payload: bytes, why: str) -> None:
    path = tmp_path / "wrong.prior"
    write_state(path, kind, version, payload)
    with pytest.raises(InvalidArgument, match=r"predictor\.prior") as raised:
        PredictorServer(PredictorConfig(prior=str(path)))
    assert why in str(raised.value)


def test_tables_of_other_contexts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.prior"
    with monkeypatch.context() as patched:
        patched.setattr(access_model, "FORMAT", "others")
        save_prior(path, MODEL)
    with pytest.raises(InvalidArgument, match="its tables have format 'others'"):
        load_prior(str(path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"predictor\.prior: cannot read .*No such file"):
        load_prior(str(tmp_path / "none.prior"))


def test_counts_of_the_prior_that_ships_are_possible() -> None:
    prior = load_prior("default").export()
    assert (prior.uses >= 0).all()
    assert (np.diff(prior.at_risk, axis=1) <= 0).all()
