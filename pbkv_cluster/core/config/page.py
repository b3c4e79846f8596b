"""Writes docs/configuration.md from the types: `python -m pbkv_cluster.core.config.page [FILE]`, by default to stdout."""

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pbkv_cluster.core.config.sources import ENV_CLIENT, ENV_FILE, ENV_PREFIX, MAX_FILE_BYTES, env_name
from pbkv_cluster.core.config.tree import Config
from pbkv_cluster.core.text.markdown import code, table, write_page

_HEAD = """\
# Configuration

Every setting of a cluster. A setting has a section and a name, such as `engine.gpu_blocks`. It can be set in four places, of
which the last one counts:

1. the default;
2. a YAML file: the one that `--config` names, or else the variable `{env_file}`; at most {file_mib} MiB;
3. an environment variable: `{prefix}`, section and name in capitals, such as `{example}`;
4. a flag of a command: its own, such as `--gpu-blocks`, or `--set engine.gpu_blocks=2048`.

Unknown settings, variables that begin with `{prefix}` and name none, and values out of range are refused, all of them at once;
{client} are no settings, but what clients are given.
`pbkv config show` prints each value and its source, `pbkv config validate FILE` says what is wrong with a file, and
`pbkv doctor` whether this machine can do what a configuration wants. Other users of a machine can see flags of a process, so a
password belongs in the file or in a variable. A cluster reads its configuration once, when it starts.

[deploy/pbkv.yaml](../deploy/pbkv.yaml) is a file to start from; which settings are worth changing is in [tune.md](tune.md).

This page is written by `python -m pbkv_cluster.core.config.page docs/configuration.md` from `pbkv_cluster/core/config`.
"""

_UNITS = {
    "agents": "agents",
    "blocks": "blocks of 16 tokens",
    "bytes": "bytes",
    "connections": "connections",
    "dims": "values",
    "horizon": "steps",
    "overhead": "seconds",
    "replicas": "gateways",
    "running": "steps",
    "s": "seconds",
    "share": "share",
    "spans": "spans",
    "steps": "steps",
    "threads": "threads",
    "tokens": "tokens",
    "waiting": "steps",
    "workers": "workers",
    "workflows": "workflows",
    "workloads": "workloads",
}
"""By the last word of a number's name. What is not here is a number without a unit, such as a port."""

_TYPES: Mapping[type, str] = {bool: "true or false", int: "integer", float: "number", str: "text"}


class Setting(NamedTuple):
    """One setting, in words."""

    path: str
    kind: str  # with its range
    default: str
    unit: str  # empty: it has none
    description: str


def page() -> str:
    """The page, in Markdown."""
    head = _HEAD.format(
        env_file=ENV_FILE,
        prefix=ENV_PREFIX,
        client=", ".join(map(code, ENV_CLIENT)),
        example=env_name("engine.gpu_blocks"),
        file_mib=MAX_FILE_BYTES >> 20,
    )
    return head + "".join(_section(name, kind) for name, kind in _sections())


def settings() -> Iterator[Setting]:
    """Every setting, in the order of the tree."""
    for section, kind in _sections():
        for name, field in kind.model_fields.items():
            yield _setting(f"{section}.{name}", field)


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, info in Config.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        yield name, kind


def _section(name: str, kind: type[BaseModel]) -> str:
    fields = [(_setting(f"{name}.{field}", info), info) for field, info in kind.model_fields.items()]
    rows = [(code(each.path), code(env_name(each.path)), *_words(each)) for each, _ in fields]
    head = ("setting", "variable", "type", "default", "unit", "meaning")
    lists = "".join(_list_of_sections(each.path, info) for each, info in fields)
    return f"\n## {name}\n\n{inspect.getdoc(kind)}\n\n{table(head, rows)}{lists}"


def _list_of_sections(path: str, field: FieldInfo) -> str:
    """The fields of each section in a list; empty: the field is none."""
    item = _item(field)
    if not (isinstance(item, type) and issubclass(item, BaseModel)):
        return ""
    rows = [(code(name), *_words(_setting(name, info))) for name, info in item.model_fields.items()]
    return f"\nEach of `{path}`:\n\n{table(('field', 'type', 'default', 'unit', 'meaning'), rows)}"


def _words(setting: Setting) -> tuple[str, ...]:
    return setting.kind, code(setting.default), setting.unit, setting.description


def _setting(path: str, field: FieldInfo) -> Setting:
    is_number = field.annotation in (int, float)
    unit = _UNITS.get(path.rpartition(".")[2].rpartition("_")[2], "") if is_number else ""
    default = "" if field.is_required() else json.dumps(field.default)
    return Setting(path, _kind(field), default, unit, field.description or "")


def _item(field: FieldInfo) -> Any:
    """What a list is of; None: the field is no list."""
    return get_args(field.annotation)[0] if get_origin(field.annotation) is tuple else None


def _kind(field: FieldInfo) -> str:
    item = _item(field)
    if get_origin(field.annotation) is Literal:
        return _choices(field.annotation)
    if get_origin(item) is Literal:
        return f"list of {_choices(item)}"
    if item is not None:
        return "list, see below"
    if get_origin(field.annotation) is dict:
        return "mapping"
    assert isinstance(field.annotation, type)
    return ", ".join([_TYPES[field.annotation], *_bounds(field.metadata)])


def _choices(kind: Any) -> str:
    return " or ".join(code(str(each)) for each in get_args(kind))


def _bounds(metadata: list[Any]) -> Iterator[str]:
    """The range of a number, in words."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = {name: getattr(each, name) for each in metadata for name in words if getattr(each, name, None) is not None}
    if {"ge", "le"} <= found.keys():
        yield f"{_number(found['ge'])} to {_number(found['le'])}"
    else:
        yield from (f"{words[name]} {_number(value)}" for name, value in found.items())


def _number(value: float) -> str:
    return f"{value:,}"


if __name__ == "__main__":
    write_page(page())
