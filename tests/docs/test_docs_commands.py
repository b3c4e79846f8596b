"""Commands in the documents are commands that there are: each `pbkv` line is parsed by the command line itself."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.exceptions import TyperException

from pbkv_cluster.cli.main import app
from pbkv_cluster.core.config.sources import fields
from tests.docs.pages import DOCUMENTS, inline_code, pbkv_commands, shell_commands, title

TREE: Any = typer.main.get_command(app)
SETTINGS = {path for path, _ in fields()}


def command_of(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that some words name, and the words after it."""
    command, rest = TREE, list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no pbkv {' '.join(words)}"
        command = command.commands[rest.pop(0)]
    return command, rest


def parse(words: Sequence[str]) -> None:
    """Parses a command as a terminal would, without running it.

    Raises:
        TyperException: the command cannot be used so.
    """
    command, rest = command_of(words)
    assert not hasattr(command, "commands") or rest, f"pbkv {' '.join(words)} is no whole command"
    command.make_context("pbkv", [*rest])  # it takes the words out of its list
    for option, value in itertools.pairwise(rest):
        if option == "--set":
            assert value.partition("=")[0] in SETTINGS, value


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_commands_in_blocks_of_shell_parse(document: Path) -> None:
    for words in pbkv_commands(document):
        parse(words)


def test_commands_are_found_and_wrong_ones_refused() -> None:
    text = (
        "A=1 pbkv serve --detach && pbkv down   # pbkv nonsense\n"
        "ssh host 'pbkv node ls'\n"
        "exec -- pbkv cache stat --json - > file\n"
        "pbkv submit \\\n  --agent a 'b c'\n"
        "vllm serve '{\n}' && pbkv top\n"
    )
    found = list(shell_commands(text))
    assert found == [
        ["serve", "--detach"],
        ["down"],
        ["node", "ls"],
        ["cache", "stat", "--json", "-"],
        ["submit", "--agent", "a", "b c"],
        ["top"],
    ]
    for words in found:
        parse(words)
    for wrong in ("nonsense", "cache", "cache nonsense", "status --nonsense", "explain", "serve --set no.such=1", "clusters x"):
        with pytest.raises((AssertionError, TyperException)):
            parse(wrong.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_commands_in_sentences_exist_with_their_options(document: Path) -> None:
    for code in inline_code(document):
        if not re.match(r"pbkv [a-z]", code):
            continue
        command, rest = command_of(code.split()[1:])
        known = {name for parameter in command.params for name in parameter.opts}
        options = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert options <= known | {"--help"}, f"`{code}`"
