"""Reads the configuration tree from its sources. A later one wins: defaults, YAML file, environment, flags.

A field is named by its path, such as `engine.gpu_blocks`; its environment variable is `PBKV_ENGINE_GPU_BLOCKS`.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pbkv_cluster.core.config.tree import Config
from pbkv_cluster.core.errors import ConfigError
from pbkv_cluster.core.locations.addresses import ADDRESS_VARIABLE
from pbkv_cluster.core.locations.urls import MASK, without_password

ENV_PREFIX = "PBKV_"
ENV_FILE = "PBKV_CONFIG"  # the YAML file, if no flag names one
ENV_CLIENT = (ADDRESS_VARIABLE, "PBKV_API_KEY", "PBKV_TLS_CA")  # what clients are given; no fields
MAX_FILE_BYTES = 1 << 20
_MAX_SHOWN = 200  # characters of a wrong value in a message


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a value: `default`, or the file, variable or flag that set it."""

    name: str


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, and the source of each value by the path of its field."""

    config: Config
    origins: Mapping[str, Origin]


def load(file: Path | None = None, env: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Reads and checks the configuration.

    Args:
        file: a YAML file; by default the one that PBKV_CONFIG names, if any.
        env: the environment; variables without the prefix are ignored.
        flags: values by field path; None: the flag was not given.

    Raises:
        ConfigError: values are invalid, or fields unknown. The message has a line for each, with the field and the source.
    """
    env = env or {}
    if file is None and env.get(ENV_FILE):
        file = Path(env[ENV_FILE])
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    paths = {path for path, _ in fields()}
    problems: list[str] = []
    for source in (
        _from_file(file, paths, problems),
        _from_env(env, paths, problems),
        _from_flags(flags or {}, paths, problems),
    ):
        for path, (value, origin) in source.items():
            values[path], origins[path] = value, origin
    try:
        config = Config.model_validate(_nest(values))
    except ValidationError as error:
        problems += _explain(error, origins)
    if problems:
        raise ConfigError("\n".join(problems))
    return Settings(config, {path: origins.get(path, Origin("default")) for path in sorted(paths)})


def fields() -> Iterator[tuple[str, str]]:
    """Path and description of every field, in the order of the tree."""
    for section, info in Config.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        for name, leaf in kind.model_fields.items():
            yield f"{section}.{name}", leaf.description or ""


def env_name(path: str) -> str:
    """The environment variable of a field."""
    return ENV_PREFIX + path.replace(".", "_").upper()


def value_of(config: Config, path: str) -> Any:
    """The value of the field at `path`; sections in a list are mappings."""
    section, name = path.split(".")
    value = getattr(getattr(config, section), name)
    return [item.model_dump(mode="json") for item in value] if isinstance(value, tuple) else value


def shown(path: str, value: Any) -> Any:
    """A field's value as it may be shown: a URL without its password."""
    if path != "redis.url":
        return value
    return without_password(value) if isinstance(value, str) else MASK


_Source = dict[str, tuple[Any, Origin]]


class _StrictLoader(yaml.SafeLoader):
    """Rejects a key that is given twice; YAML's own loaders silently drop the first value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _from_file(file: Path | None, paths: set[str], problems: list[str]) -> _Source:
    """What a file sets. What is wrong in it is added to `problems`, unless nothing in it can be understood."""
    if file is None:
        return {}
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ConfigError(f"{file} is no configuration file: it has more than {MAX_FILE_BYTES:,} bytes")
        tree = yaml.load(text.decode(), _StrictLoader)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that does not exist
        raise ConfigError(f"{file} is not YAML: {_yaml_problem(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: the top level must be a mapping of sections, got {type(tree).__name__}")
    found: _Source = {}
    for section, entries in tree.items():
        if not isinstance(entries, dict | None) or not (entries or section in Config.model_fields):
            problems.append(f"{file}: {section}: must be a section of fields; sections are {', '.join(Config.model_fields)}")
            continue
        for name, value in (entries or {}).items():
            path = f"{section}.{name}"
            if _is_known(path, str(file), paths, problems):
                found[path] = (value, Origin(str(file)))
    return found


def _yaml_problem(error: Exception) -> str:
    """What is wrong and where. PyYAML's own message quotes the line, which may hold a password."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error)


def _from_env(env: Mapping[str, str], paths: set[str], problems: list[str]) -> _Source:
    known = {env_name(path): path for path in paths}
    found: _Source = {}
    for name, value in env.items():
        if not name.startswith(ENV_PREFIX) or name in (ENV_FILE, *ENV_CLIENT):
            continue
        if name in known:
            found[known[name]] = (value, Origin(name))
        else:
            problems.append(f"the environment variable {name} names no field{_nearest(name, known)}")
    return found


def _from_flags(flags: Mapping[str, Any], paths: set[str], problems: list[str]) -> _Source:
    found: _Source = {}
    for path, value in flags.items():
        if _is_known(path, "flag", paths, problems) and value is not None:
            found[path] = (value, Origin("flag"))
    return found


def _is_known(path: str, source: str, paths: set[str], problems: list[str]) -> bool:
    if path in paths:
        return True
    problems.append(f"{path} (from {source}): there is no such field{_nearest(path, paths)}")
    return False


def _nearest(name: str, known: Mapping[str, str] | set[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _nest(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tree: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, name = path.split(".")
        tree.setdefault(section, {})[name] = value
    return tree


def _explain(error: ValidationError, origins: Mapping[str, Origin]) -> list[str]:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        # A rule about a whole section may be broken by any field of it that was set.
        set_by = sorted({origin.name for field, origin in origins.items() if field == path or field.startswith(f"{path}.")})
        got = "" if isinstance(problem["input"], BaseModel | dict) else f", got {_cut(repr(shown(path, problem['input'])))}"
        source = f" (from {', '.join(set_by)})" if set_by else ""
        where = f"{path}{source}: " if path else ""  # a rule about several sections names the fields itself
        lines.append(f"{where}{problem['msg'].removeprefix('Value error, ')}{got}")
    return lines


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
