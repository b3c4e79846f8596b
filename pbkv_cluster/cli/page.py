"""Writes docs/commands.md from the commands: `python -m pbkv_cluster.cli.page [FILE]`, by default to standard output."""

import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, NamedTuple, get_args

import typer
from typer.models import ArgumentInfo

from pbkv_cluster.cli.main import EXIT_CODES, app
from pbkv_cluster.core.text.markdown import code, table, write_page

_HEAD = """\
# Commands

`pbkv COMMAND --help` says the same in a terminal. This page is written by `python -m pbkv_cluster.cli.page docs/commands.md`
from the commands themselves.

## Exit codes

{codes}
A command that fails says why in one line on standard error, which begins with `pbkv: `. That is so too if no cluster answers at
the address that it was given.

## Results

Tables are for people, and change. With `--json FILE` the result is written as JSON as well; with `--json -` it goes to standard
output, and the tables to standard error.

## Shell completion

`pbkv --install-completion` sets up the shell that it is called from (bash, zsh, fish, PowerShell) to complete commands, options
and the values of some of them, such as names of policies and fields of the configuration. `pbkv --show-completion` prints what
it would add.
"""


class Flag(NamedTuple):
    """An option or an argument of a command."""

    names: str  # with the name of its value, if it has one
    default: str  # empty: none
    help: str
    is_argument: bool


def page() -> str:
    """The page, in Markdown."""
    codes = table(("code", "meaning"), ((str(number), meaning) for number, meaning in EXIT_CODES.items()))
    return _HEAD.format(codes=codes) + "".join(_section(name, function) for name, function in commands(app))


def commands(group: typer.Typer, name: str = "pbkv") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command by its full name, and the function behind it."""
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{name} {command.name or command.callback.__name__.replace('_', '-')}", command.callback
    for member in group.registered_groups:
        assert member.typer_instance is not None
        yield from commands(member.typer_instance, f"{name} {member.typer_instance.info.name}")


def flags(function: Callable[..., Any]) -> Iterator[Flag]:
    """What a command can be given."""
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(parameter.annotation)
        is_argument = isinstance(info, ArgumentInfo)
        word = code(info.metavar or _value(kind, name))
        if is_argument:
            names = word
        else:
            given = [each for each in (info.default, *(info.param_decls or ())) if str(each).startswith("--")]
            declared = ", ".join(code(each) for each in given or (f"--{name.replace('_', '-')}",))
            names = declared if kind is bool else f"{declared} {word}"
        yield Flag(names, _default(parameter.default), _plain(info.help), is_argument)


def _section(name: str, function: Callable[..., Any]) -> str:
    rows = [(each.names, each.default, each.help) for each in flags(function)]
    listed = f"\n{table(('flag', 'default', 'meaning'), rows)}" if rows else ""
    given = [(each.names.strip("`"), each.default) for each in flags(function) if each.is_argument]
    arguments = [names if default == "required" else f"[{names}]" for names, default in given]
    return f"\n## {name}\n\n`{' '.join([name, *arguments])}`\n\n{_plain(inspect.getdoc(function))}\n{listed}"


def _value(kind: Any, name: str) -> str:
    """What stands for a value that has no name of its own: its choices, or its type."""
    kinds = [each for each in get_args(kind) or (kind,) if each is not type(None)]
    if isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
        return "|".join(str(each.value) for each in kinds[0])
    return {int: "INTEGER", float: "NUMBER", str: "TEXT"}.get(kinds[0], name.upper())


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if value in (None, "", False):
        return ""
    return code(str(value.value if isinstance(value, Enum) else value))


def _plain(text: str | None) -> str:
    """A docstring, unwrapped."""
    paragraphs = (text or "").strip().split("\n\n")
    return "\n\n".join(" ".join(line.strip() for line in each.splitlines()) for each in paragraphs)


if __name__ == "__main__":
    write_page(page())
