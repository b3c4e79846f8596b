"""The files for Prometheus, judged by its own tool."""

import subprocess
from pathlib import Path

import pytest

from tests.deploy.prometheus import DEPLOY, program

TESTS = Path(__file__).with_name("alerts_test.yaml")

pytestmark = pytest.mark.slow  # needs promtool


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", str(DEPLOY / "prometheus.yaml")),
        ("check", "rules", str(DEPLOY / "alerts.yaml")),
        ("test", "rules", str(TESTS)),
    ],
)
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_fires_too_early_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text((DEPLOY / "alerts.yaml").read_text().replace("for: 30m", "for: 1m"))
    (tmp_path / "test.yaml").write_text(TESTS.read_text().replace("../../deploy/alerts.yaml", "alerts.yaml"))
    done = subprocess.run([program("promtool"), "test", "rules", str(tmp_path / "test.yaml")], capture_output=True, timeout=60)
    assert done.returncode == 1
