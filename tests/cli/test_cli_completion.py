"""What a shell completes, asked as a shell asks."""

import pytest
from click.shell_completion import ShellComplete
from typer.main import get_command

from pbkv_cluster.cli.main import app


def completed(args: list[str], incomplete: str) -> list[str]:
    shell = ShellComplete(get_command(app), {}, "pbkv", "_PBKV_COMPLETE")
    return [item.value for item in shell.get_completions(args, incomplete)]


@pytest.mark.parametrize(
    ("args", "incomplete", "values"),
    [
        (["serve", "--policy"], "pb", ["pbkv", "pbkv-paper"]),
        (["simulate", "--policies"], "lru,o", ["lru,oracle"]),
        (["simulate", "--policies"], "pbkv,oracle,pb", ["pbkv,oracle,pbkv-paper"]),
        (["demo", "--policies"], "o", []),
        (["predictor", "eval", "--expert"], "m", ["markov"]),
        (["serve", "--set"], "engine.gpu_b", ["engine.gpu_blocks="]),
        (["hints", "--format"], "m", ["msgpack"]),
    ],
)
def test_values_of_options(args: list[str], incomplete: str, values: list[str]) -> None:
    assert completed(args, incomplete) == values


def test_every_field_of_the_configuration_is_completed() -> None:
    from pbkv_cluster.core.config.sources import fields

    assert completed(["config", "show", "--set"], "") == [f"{path}=" for path, _ in fields()]
