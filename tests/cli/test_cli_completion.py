"""What a shell completes, asked as bash asks."""

import pytest
from typer.testing import CliRunner

from pbkv_cluster.cli.main import app
from pbkv_cluster.core.config.sources import fields


def completed(words: str) -> list[str]:
    """What completes the last word of a command line."""
    asked = {"_PBKV_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return CliRunner().invoke(app, [], prog_name="pbkv", env=asked).stdout.split()


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("pbkv serve --policy pb", ["pbkv", "pbkv-paper"]),
        ("pbkv simulate --policies lru,o", ["lru,oracle"]),
        ("pbkv simulate --policies pbkv,oracle,pb", ["pbkv,oracle,pbkv-paper"]),
        ("pbkv demo --policies o", []),
        ("pbkv predictor eval --expert m", ["markov"]),
        ("pbkv serve --set engine.gpu_b", ["engine.gpu_blocks="]),
        ("pbkv hints --format m", ["msgpack"]),
    ],
)
def test_values_of_options(words: str, values: list[str]) -> None:
    assert completed(words) == values


def test_every_field_of_the_configuration_is_completed() -> None:
    assert completed("pbkv config show --set ") == [f"{path}=" for path, _ in fields()]


def test_a_shell_can_be_set_up_for_it() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert "--install-completion" in shown
    assert "--show-completion" in shown
