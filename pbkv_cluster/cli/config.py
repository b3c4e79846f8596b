"""`pbkv config`: every field of the configuration with its value, and whether a configuration file is right."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pbkv_cluster.cli.options import Assignments, ConfigFile, load_settings
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.core.errors import ConfigError, InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

    from pbkv_cluster.core.config import Settings

config_app = typer.Typer(name="config", help="Inspect the configuration.", no_args_is_help=True)


@config_app.callback()
def _config() -> None:
    pass


class _Row(NamedTuple):
    field: str
    value: Any
    origin: str
    variable: str
    description: str


@config_app.command()
def show(
    config: ConfigFile = None,
    assignments: Assignments = None,
    json_target: JsonTarget = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print a configuration file.")] = False,
) -> None:
    """Show every field, its value and the source of the value: default, file, environment or flag."""
    if json_target is not None and as_yaml:
        raise InvalidArgument("--yaml", "cannot be combined with --json")
    check_json_target(json_target)
    rows = list(_rows(load_settings(config, assignments, {})))
    if as_yaml:
        typer.echo(_yaml(rows), nl=False)
        return
    _print_table(rows, result_console(json_target))
    write_json([row._asdict() for row in rows], json_target)


@config_app.command()
def validate(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="YAML configuration file; by default the one that PBKV_CONFIG names."),
    ] = None,
    json_target: JsonTarget = None,
) -> None:
    """Say all that is wrong with a configuration file at once. Exits with 2 if anything is.

    Looks at the file alone, and neither at the environment nor at the machine; `pbkv doctor` does.
    """
    check_json_target(json_target)
    named = file or Path(os.environ.get("PBKV_CONFIG", ""))
    if named == Path():
        raise InvalidArgument("FILE", "is missing; give it, or set PBKV_CONFIG")
    problems = _problems(named)
    console = result_console(json_target)
    for problem in problems or [f"{named} is right"]:
        console.print(problem, highlight=False, markup=False, soft_wrap=True)
    write_json({"file": str(named), "problems": problems}, json_target)
    if problems:
        raise typer.Exit(2)


def _problems(file: Path) -> list[str]:
    """What is wrong with a configuration file: fields, values, and names of policies."""
    from pbkv_cluster.cache.policies.base import make_policy
    from pbkv_cluster.core.config import load

    try:
        config = load(file).config.cache
    except ConfigError as error:
        return str(error).splitlines()
    problems = []
    for field, name in (("cache.policy", config.policy), ("cache.host_policy", config.host_policy)):
        try:
            make_policy(name or config.policy, config, field)
        except InvalidArgument as error:
            problems.append(str(error))
    return problems


def _rows(settings: "Settings") -> Iterator[_Row]:
    from pbkv_cluster.core.config.sources import env_name, fields, shown, value_of

    for path, description in fields():
        value = shown(path, value_of(settings.config, path))
        yield _Row(path, value, settings.origins[path].name, env_name(path), description)


def _yaml(rows: list[_Row]) -> str:
    import yaml

    tree: dict[str, dict[str, Any]] = {}
    for row in rows:
        section, name = row.field.split(".")
        tree.setdefault(section, {})[name] = row.value
    text: str = yaml.safe_dump(tree, sort_keys=False)
    return text


def _print_table(rows: list[_Row], console: "Console") -> None:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(Column("field", no_wrap=True), "value", "from", "description", header_style="bold")
    for row in rows:
        is_set = row.origin != "default"
        value = Text(str(row.value) if row.value != "" else '""', style="bold" if is_set else "")
        table.add_row(Text(row.field), value, Text(row.origin), Text(row.description, style="dim"))
    console.print(table)
