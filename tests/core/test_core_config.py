"""Configuration: which source wins, where each value came from, and errors that name the field and its source."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbkv_cluster.core.config import Config, load
from pbkv_cluster.core.config.sources import env_name, fields, value_of
from pbkv_cluster.core.errors import ConfigError

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "some.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults_are_complete_and_valid() -> None:
    settings = load()
    assert settings.config == Config()
    assert {origin.name for origin in settings.origins.values()} == {"default"}
    assert list(settings.origins) == sorted(path for path, _ in fields())


def test_every_field_is_documented() -> None:
    assert [path for path, description in fields() if not description] == []


def test_no_two_fields_share_a_variable() -> None:
    names = [env_name(path) for path, _ in fields()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("file", "env", "flag", "value", "origin"),
    [
        (None, None, None, 1024, "default"),
        (1, None, None, 1, "some.yaml"),
        (1, 2, None, 2, "PBKV_ENGINE_MAX_WAITING"),
        (1, 2, 3, 3, "flag"),
        (None, 2, None, 2, "PBKV_ENGINE_MAX_WAITING"),
        (1, None, 3, 3, "flag"),
    ],
)
def test_a_later_source_wins(
    write: Write, file: int | None, env: int | None, flag: int | None, value: int, origin: str
) -> None:
    settings = load(
        write(f"engine: {{max_waiting: {file}}}") if file is not None else None,
        {} if env is None else {"PBKV_ENGINE_MAX_WAITING": str(env)},
        {"engine.max_waiting": flag},
    )
    assert settings.config.engine.max_waiting == value
    assert settings.origins["engine.max_waiting"].name.endswith(origin)


def test_sources_mix_within_a_section(write: Write) -> None:
    settings = load(write("engine: {threads: 2, max_running: 8}"), {"PBKV_ENGINE_MAX_RUNNING": "9"}, {"engine.gpu_blocks": 7})
    engine = settings.config.engine
    assert (engine.threads, engine.max_running, engine.gpu_blocks) == (2, 9, 7)
    assert settings.origins["engine.threads"].name.endswith("some.yaml")
    assert settings.origins["engine.device"].name == "default"


def test_the_environment_can_name_the_file(write: Write, tmp_path: Path) -> None:
    path = write("cluster: {name: from-env}")
    assert load(env={"PBKV_CONFIG": str(path)}).config.cluster.name == "from-env"
    other = tmp_path / "other.yaml"
    other.write_text("cluster: {name: from-flag}")
    assert load(other, {"PBKV_CONFIG": str(path)}).config.cluster.name == "from-flag"
    assert load(env={"PBKV_CONFIG": ""}).config == Config()


def test_other_variables_are_ignored() -> None:
    assert load(env={"PATH": "/bin", "MY_PBKV_X": "1"}).config == Config()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "engine:\n", "engine: {}\ncache:\n"])
def test_empty_files_and_sections_are_fine(write: Write, text: str) -> None:
    assert load(write(text)).config == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine: {gpu_block: 3}", r"engine\.gpu_block \(from .*some\.yaml\).*did you mean engine\.gpu_blocks\?"),
        ("engin: {threads: 3}", r"engin\.threads \(from .*some\.yaml\).*did you mean engine\.threads\?"),
        ("engine: {zzzzz: 3}", r"engine\.zzzzz \(from .*some\.yaml\): there is no such field"),
        ("engin: {}", r"engin: must be a section.*sections are cluster, model"),
        ("engin:", r"engin: must be a section"),
        ("engine: 3", r"engine: must be a section"),
        ("engine: [a]", r"engine: must be a section"),
        ("- engine", r"top level must be a mapping of sections, got list"),
        ("text", r"top level must be a mapping of sections, got str"),
        ("engine: {threads: 2\n", r"(?s)some\.yaml is not YAML: .*line"),
        ("a\tb: {\t", r"some\.yaml is not YAML"),
        ("engine: !!python/object:os.system {}", r"some\.yaml is not YAML"),
        ("engine: {threads: 1}\nengine: {max_running: 2}", r"(?s)engine is given twice.*line 2"),
        ("engine:\n  threads: 1\n  threads: 1", r"(?s)threads is given twice.*line 3"),
        ("engine: {threads: 0}", r"engine\.threads \(from .*some\.yaml\): .*greater than or equal to 1, got 0"),
        ("engine: {threads: many}", r"engine\.threads \(from .*some\.yaml\): .*integer.*got 'many'"),
        ("engine: {threads: null}", r"engine\.threads \(from .*some\.yaml\): .*integer"),
        ("cache: {gamma: .nan}", r"cache\.gamma \(from .*\): .*got nan"),
        ("model: {dtype: int4}", r"model\.dtype \(from .*\): .*'bfloat16'.*got 'int4'"),
        ("cluster: {name: 'a b'}", r"cluster\.name \(from .*\): .*pattern"),
        ("engine: {prefill_chunk_tokens: 4096}", r"engine \(from .*some\.yaml\): prefill_chunk_tokens must not exceed"),
    ],
)
def test_an_invalid_file_is_refused(write: Write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(write(text))


def test_all_invalid_values_are_reported_at_once(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write("engine: {threads: 0}"), {"PBKV_GATEWAY_PORT": "70000"}, {"cache.gamma": 2})
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"engine.threads (from {write('')})",
        "cache.gamma (from flag)",
        "gateway.port (from PBKV_GATEWAY_PORT)",
    ]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.yaml: No such file"):
        load(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        load(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(binary)


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"PBKV_ENGINE_GPU_BLOCK names no field; did you mean PBKV_ENGINE_GPU_BLOCKS\?"):
        load(env={"PBKV_ENGINE_GPU_BLOCK": "3"})
    with pytest.raises(ConfigError, match="PBKV_ names no field"):
        load(env={"PBKV_": "3"})


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine\.gpu_bloks \(from flag\).*did you mean engine\.gpu_blocks\?"):
        load(flags={"engine.gpu_bloks": None})


def test_a_configuration_cannot_be_changed() -> None:
    engine: Any = load().config.engine
    with pytest.raises(ValueError, match="frozen"):
        engine.threads = 2


@given(st.sampled_from([path for path, _ in fields()]))
def test_the_environment_reaches_every_field(path: str) -> None:
    value: Any = value_of(Config(), path)
    settings = load(env={env_name(path): str(value).lower() if isinstance(value, bool) else str(value)})
    assert value_of(settings.config, path) == value
    assert settings.origins[path].name == env_name(path)
