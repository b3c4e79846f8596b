"""What a plain installation can do: the packages of the extras are missing, and only commands that need them say so."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pbkv_cluster.cli.extras import EXTRAS, extra_of
from pbkv_cluster.core.locations.installation import install_command
from tests.cli.conftest import DEADLINE_S

ROOT = Path(__file__).resolve().parents[2]
# Runs the command in a process in which the packages of extras cannot be imported.
PLAIN = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(sum(EXTRAS.values(), ()))!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from pbkv_cluster.cli.main import main
main(sys.argv[1:])
"""
NOBODY = ("--endpoint", "127.0.0.1:1")


def plain(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PLAIN, *args], capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.mark.parametrize("args", [["--help"], ["config", "show"], ["replay", "--help"]])
def test_what_needs_no_server_works(args: list[str]) -> None:
    done = plain(*args)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args", [["status", *NOBODY], ["submit", *NOBODY, "hello"]])
def test_a_client_gets_as_far_as_the_gateway(args: list[str]) -> None:
    done = plain(*args)
    assert done.returncode == 1
    assert "nobody answers at" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [["serve"], ["demo"], ["hints", "--predictor", "127.0.0.1:1"]])
def test_what_needs_a_server_names_the_extra(args: list[str]) -> None:
    done = plain(*args)
    assert done.returncode == 1
    *_, told = done.stderr.splitlines()
    remedy = re.escape(install_command("server"))
    assert re.fullmatch(rf"pbkv: this command needs \w+, which is not installed: {remedy}", told)
    assert "Traceback" not in done.stderr


def test_a_live_view_names_its_extra_in_one_line_and_its_figures_need_none() -> None:
    done = plain("top", *NOBODY)
    assert done.returncode == 1
    wanted = f"pbkv: this command needs textual, which is not installed: {install_command('top')}\n"
    assert done.stderr == wanted
    assert "nobody answers at" in plain("top", *NOBODY, "--json", "-").stderr


def test_a_missing_module_of_ours_is_a_defect() -> None:
    assert extra_of("pbkv_cluster.cli.nowhere") is None
    assert extra_of(None) is None
    assert extra_of("torch.nn") == "server"


def test_the_table_knows_every_package_of_the_extras() -> None:
    imported_as = importlib.metadata.packages_distributions()
    known = {
        _normal(distribution) for packages in EXTRAS.values() for each in packages for distribution in imported_as.get(each, ())
    }
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {_normal(re.split(r"[^\w.-]", requirement)[0]) for extra in EXTRAS for requirement in extras[extra]}
    assert wanted
    assert wanted <= known


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
