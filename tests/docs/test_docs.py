"""What the documents name exists: linked pages, make targets, benchmarks, settings, metrics, files; their examples run."""

import gzip
import re
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from pbkv_cluster.core.config.sources import ENV_CLIENT, ENV_FILE, env_name, fields
from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.metric import Kind
from tests.cli.agent_traces import write_trace
from tests.docs.pages import DOCUMENTS, ROOT, anchors, inline_code, title

CODE = ("pbkv_cluster", "tests", "benchmarks", "proto", "deploy", "docs")
FILES = [f"/{file.relative_to(ROOT)}" for folder in CODE for file in (ROOT / folder).rglob("*.*")]
OF_TESTS = ("PBKV_FUZZED_REQUESTS", "PBKV_ENGINES_FOLDER", "PBKV_VLLM_PYTHON")  # variables
PARTS_OF_HISTOGRAMS = ("", "_bucket", "_sum", "_count")
METRICS = {
    metric.name + part for metric in names.ALL for part in (PARTS_OF_HISTOGRAMS if metric.kind is Kind.HISTOGRAM else ("",))
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)", document.read_text()):
        target = document.parent / path if path else document
        assert target.exists(), f"{title(document)} links to {path}"
        if anchor:
            assert anchor in anchors(target), f"{title(document)} links to {path}#{anchor}"


def test_the_guide_leads_to_every_document() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs" / "README.md").read_text()))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_metrics_exist(document: Path) -> None:
    """Those of other programs have a prefix: `vllm:pbkv_...`."""
    named = set(re.findall(r"(?<![\w:])pbkv_(?!cluster\b)\w+(?![\w*])", document.read_text()))
    assert named - METRICS == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_variables_exist(document: Path) -> None:
    known = {ENV_FILE, *ENV_CLIENT, *OF_TESTS, *(env_name(path) for path, _ in fields())}
    assert set(re.findall(r"\bPBKV_[A-Z_]+\b(?!\*)", document.read_text())) - {"PBKV_"} <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_files_exist(document: Path) -> None:
    """Of this repository: a path may leave out the folders that it begins with."""
    for name in inline_code(document):
        if re.fullmatch(r"(?:[\w-]+/)+[\w.-]+\.(?:py|md|ya?ml|json|proto|lua)", name):
            assert any(file.endswith(f"/{name}") for file in FILES), f"{title(document)} names {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", document.read_text())) <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_benchmarks_exist(document: Path) -> None:
    from benchmarks.__main__ import LONG, NAMES

    for name in re.findall(r"python -m benchmarks ([a-z-]+)", document.read_text()):
        assert name in (*NAMES, *LONG), f"{document.name} speaks of benchmark {name}"


def test_the_document_on_prediction_names_every_expert() -> None:
    from pbkv_cluster.predictor_service.experts import EXPERTS

    text = (ROOT / "docs" / "prediction.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \| ", text.split("## Experts")[1], re.MULTILINE)) >= {*EXPERTS.names()}


def test_the_document_on_tuning_names_every_policy_and_mode_of_prefetch() -> None:
    from pbkv_cluster.cache.policies import POLICIES
    from pbkv_cluster.core.config import CacheConfig

    _, policies, prefetch = re.split(
        r"^## (?:Policies|Copies ahead of need)$", (ROOT / "docs" / "tune.md").read_text(), flags=re.MULTILINE
    )
    first = re.compile(r"^\| `([\w-]+)` \| ", re.MULTILINE)
    served = {name for name in POLICIES.names() if POLICIES.get(name).__module__.startswith("pbkv_cluster.cache.")}
    assert {*first.findall(policies)} == served, "others, such as the oracle, are of the simulator and of tests"
    assert (*first.findall(prefetch),) == get_args(CacheConfig.model_fields["prefetch"].annotation)


def test_examples_of_the_document_on_prediction_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pbkv_cluster.cli.main import app

    for name in ("trace", "last-week"):
        with gzip.open(write_trace(tmp_path / "made.jsonl.gz", workflows=12), "rt") as made:
            (tmp_path / f"{name}.jsonl").write_text(made.read())
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^pbkv (.+)$", (ROOT / "docs" / "prediction.md").read_text(), re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        arguments = command.split()
        if "explain" in arguments:  # needs a cluster; tests of the command have one
            arguments = [*arguments[:2], "--help"]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"pbkv {command}: {done.output} {done.exception!r}"
    assert (tmp_path / "figures.json").exists()
    assert (tmp_path / "trained" / "predictor.state").exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_settings_exist(document: Path) -> None:
    known = {path for path, _ in fields()}
    sections = {path.split(".")[0] for path in known}
    for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", document.read_text()):
        if name.split(".")[0] in sections:
            assert name in known, f"{document.name} speaks of {name}"


def test_nothing_is_installed_from_a_package_index_that_does_not_have_it() -> None:
    """The project is installed from a checkout: the documents show it, and messages name the checkout (`install_command`)."""
    written = [*DOCUMENTS, *(ROOT / "deploy").iterdir(), *(ROOT / "pbkv_cluster").rglob("*.py"), ROOT / "Makefile"]
    named = re.compile(r"pbkv-cluster\[|pip install[^`\n]* '?pbkv-cluster\b")
    assert [str(file.relative_to(ROOT)) for file in written if named.search(file.read_text())] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
