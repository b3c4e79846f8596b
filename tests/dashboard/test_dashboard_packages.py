"""Without the packages of its extra, the dashboard says in one line how to get them."""

import sys

import pytest

from pbkv_cluster.core.locations.installation import install_command
from pbkv_cluster.dashboard.member import missing_packages

SERVER = "pbkv_cluster.dashboard.server"


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package or name == SERVER]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    told = missing_packages()
    assert install_command("dashboard") in told
    assert package in told
    assert "\n" not in told


def test_nothing_is_told_when_all_is_there() -> None:
    assert missing_packages() == ""
