"""The command that messages give to whoever lacks an extra: it installs from where this package came from."""

import json
import shlex
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from pbkv_cluster.core.locations import installation
from pbkv_cluster.core.locations.installation import install_command

ROOT = Path(__file__).resolve().parents[2]


def words(extra: str) -> list[str]:
    return shlex.split(install_command(extra))


def test_a_checkout_is_named() -> None:
    assert words("gpu") == ["pip", "install", f"{ROOT}[gpu]"]


def test_an_installed_package_names_the_checkout_that_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "my copy"
    source.mkdir()
    monkeypatch.setattr(installation, "CHECKOUT", tmp_path / "site-packages")
    told = json.dumps({"url": source.as_uri(), "dir_info": {}})
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: told))
    assert words("otel") == ["pip", "install", ".[otel]"], "it is there no more"
    (source / "pyproject.toml").touch()
    assert words("otel") == ["pip", "install", f"{source}[otel]"]


def test_where_nothing_tells_it_the_folder_that_one_is_in_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installation, "CHECKOUT", tmp_path)
    monkeypatch.setattr(installation, "DISTRIBUTION", "no-such-distribution-of-ours")
    assert words("http") == ["pip", "install", ".[http]"]
    wheel = json.dumps({"url": "https://example.com/pbkv.whl"})
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: wheel))
    assert words("http") == ["pip", "install", ".[http]"]
