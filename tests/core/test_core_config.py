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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("redis: {lease_s: .inf}", "redis.lease_s (from {file}): Input should be a finite number, got inf"),
        ("redis: {lease_s: .nan}", "redis.lease_s (from {file}): "),
        ("redis: {lease_s: 1.0e+300}", "redis.lease_s (from {file}): must be at most 1e+12, got 1e+300"),
        ("engine: {gpu_blocks: 1" + "0" * 30 + "}", "engine.gpu_blocks (from {file}): "),
        ("engine: {gpu_blocks: yes}", "engine.gpu_blocks (from {file}): must be a number, not true or false, got True"),
        ("gateway: {port: 99999}", "gateway.port (from {file}): Input should be less than or equal to 65535, got 99999"),
        ('model: {path: "a\\0b"}', "model.path (from {file}): must not contain control characters"),
        ("cluster: {host: '10.0.0.5:26100'}", "cluster.host (from {file}): must be a host without a port"),
        ("cluster: {host: '[::1]'}", "cluster.host (from {file}): an IPv6 address stands without brackets here"),
        ("cluster: {host: 'http://x'}", "cluster.host (from {file}): must be a host without a port"),
        ("cluster: {ray_node_ip: 'a b'}", "cluster.ray_node_ip (from {file}): must be the name or the number of a host"),
        ("engine: {threads: " + "[" * 5000, "{file} is not YAML: it is nested too deeply"),
        ("engine: {threads: 2023-13-45}", "{file} is not YAML: month must be in 1..12"),
    ],
)
def test_values_beyond_all_bounds_are_named(write: Write, text: str, message: str) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as error:
        load(file)
    assert str(error.value).startswith(message.format(file=file))
    assert len(str(error.value)) < 1000


def test_a_file_of_any_size_is_not_read_whole(write: Write) -> None:
    with pytest.raises(ConfigError, match="is no configuration file: it has more than 1,048,576 bytes"):
        load(write("#" * (2 << 20)))


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@db:99999/0",
        "redis://:s3cret@db/zero",
        "redis://:s3cret@",
        "redis://:s3cret@one:1,two:2",
        "redis+other://:s3cret@one",
        "unix+cluster://:s3cret@one",
        "redis+cluster://:s3cret@one:1,two:99999",
        "redis+cluster://:s3cret@one,,two",
        "redis+sentinel://:s3cret@one/main/zero",
        "redis+sentinel://:s3cret@one/main/0/0",
        "redis://:s3/cret@db",
        "http://:s3cret@db",
        "s3cret@db",
        "unix://:s3cret@",
    ],
)
def test_a_wrong_url_of_redis_is_named_without_its_password(write: Write, url: str) -> None:
    with pytest.raises(ConfigError, match=r"^redis\.url \(from .*\): must |^redis\.url \(from .*\): the database") as error:
        load(write(f"redis: {{url: '{url}'}}"))
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://db",
        "redis://me:p@[::1]:6379/3",
        "rediss://db:6380?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=1",
        "redis+sentinel://me:p@one:26379,two/main/3",
        "rediss+cluster://:p@[::1]:7000,two:7001?ssl_ca_certs=/ca.pem",
    ],
)
def test_urls_of_redis(url: str) -> None:
    assert load(flags={"redis.url": url}).config.redis.url == url


def test_no_message_quotes_the_file_around_a_mistake(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"is not YAML: .* \(line 1, column \d+\)") as error:
        load(write("redis: {url: redis://:s3cret@db:6379, url: [}"))
    assert "s3cret" not in str(error.value)
    assert "s3cret" not in repr(load(flags={"redis.url": "redis://:s3cret@db"}).config)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"engine.disk_bytes": 1 << 30}, "disk_bytes needs disk_path"),
        ({"engine.disk_bytes": 1 << 30, "engine.disk_path": "/d", "engine.host_blocks": 0}, "host_blocks must not be 0"),
    ],
)
def test_a_disk_tier_needs_a_folder_and_a_host_tier(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(flags=fields)
    assert load(flags={**fields, "engine.disk_path": "/d", "engine.host_blocks": -1}).config.engine.disk_bytes == 1 << 30
