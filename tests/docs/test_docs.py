"""What the documents name exists: linked files, make targets, commands, settings; their examples run."""

import gzip
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pbkv_cluster.core.config.sources import fields
from tests.cli.agent_traces import write_trace

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", document.read_text())) <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(document: Path) -> None:
    from pbkv_cluster.cli.main import app

    shown = CliRunner().invoke(app, ["--help"]).output
    for command in set(re.findall(r"`pbkv ([a-z]+)", document.read_text())):
        assert re.search(rf"\b{command}\b", shown), f"{document.name} speaks of pbkv {command}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_benchmarks_exist(document: Path) -> None:
    from benchmarks.__main__ import LONG, NAMES

    for name in re.findall(r"python -m benchmarks ([a-z-]+)", document.read_text()):
        assert name in (*NAMES, *LONG), f"{document.name} speaks of benchmark {name}"


def test_the_document_on_prediction_names_every_expert() -> None:
    from pbkv_cluster.predictor_service.experts import EXPERTS

    text = (ROOT / "docs" / "prediction.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \| ", text.split("## Experts")[1], re.MULTILINE)) >= {*EXPERTS.names()}


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_exist(document: Path) -> None:
    known = {path for path, _ in fields()}
    sections = {path.split(".")[0] for path in known}
    for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", document.read_text()):
        if name.split(".")[0] in sections:
            assert name in known, f"{document.name} speaks of {name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
