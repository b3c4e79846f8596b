"""What the documents say exists: linked files, make targets, commands, settings."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pbkv_cluster.core.config.sources import fields

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
def test_settings_exist(document: Path) -> None:
    known = {path for path, _ in fields()}
    sections = {path.split(".")[0] for path in known}
    for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", document.read_text()):
        if name.split(".")[0] in sections:
            assert name in known, f"{document.name} speaks of {name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
