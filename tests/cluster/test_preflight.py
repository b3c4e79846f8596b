"""What is wrong is told by its setting before anything is started."""

import asyncio
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.cluster.frame import ray_session
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.cluster.startup import preflight
from pbkv_cluster.cluster.startup.private_file import make_private, write_private
from pbkv_cluster.cluster.startup.stages import Stages
from pbkv_cluster.core.clock import ManualClock
from pbkv_cluster.core.config import Config, load
from pbkv_cluster.core.errors import ConfigError, InvalidArgument, StartupError
from pbkv_cluster.core.security.exposure import open_to_all
from pbkv_cluster.store.cluster_index import Directory, GatewayEntry, RedisServer, connect
from pbkv_cluster.store.cluster_index.redis_server import free_port, listen
from tests.certificates import Authority


def config(**flags: Any) -> Config:
    return load(
        flags={"gateway.port": 0, "gateway.http_port": 0, **{name.replace("__", "."): value for name, value in flags.items()}}
    ).config


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_defaults_pass(small_model: Path) -> None:
    preflight.check(config(model__path=str(small_model)))
    preflight.check(config(cluster__host="::1", otel__enabled=True, otel__port=0, otel__http_port=-1))


def test_nothing_is_started_after_a_refusal(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setattr(ray_session, "start", lambda config: pytest.fail("Ray was started"))
    with pytest.raises(StartupError, match=rf"^gateway\.port: cannot listen on 127\.0\.0\.1:{taken}: the port is in use$"):
        LocalCluster(config(gateway__port=taken)).__enter__()


def test_ports_of_the_span_receiver_are_checked_too(taken: int) -> None:
    with pytest.raises(StartupError, match=r"^otel\.http_port: cannot listen on"):
        preflight.check(config(otel__enabled=True, otel__port=0, otel__http_port=taken))
    preflight.check(config(otel__enabled=False, otel__http_port=taken))
    free = free_port("127.0.0.1")
    with pytest.raises(StartupError, match=rf"^otel\.port: {free} is the port of gateway\.port too"):
        preflight.check(config(gateway__port=free, otel__enabled=True, otel__port=free, otel__http_port=-1))


def test_vllm_must_be_there() -> None:
    with pytest.raises(StartupError, match=r"^engine\.type: vLLM is not installed here; vllm\.python names"):
        preflight.check(config(engine__type="vllm"))
    with pytest.raises(StartupError, match=r"^vllm\.python: '/nowhere/python' is no program$"):
        preflight.check(config(engine__type="vllm", vllm__python="/nowhere/python"))
    preflight.check(config(engine__type="vllm", vllm__python=sys.executable))


def test_where_our_engine_and_vllm_are_together_their_numbers_must_be_known() -> None:
    with pytest.raises(StartupError, match=r"^vllm\.workers: how many of the workers are to run vLLM"):
        preflight.check(config(engine__type="mixed", vllm__python=sys.executable))
    with pytest.raises(StartupError, match=r"^vllm\.python: '/nowhere/python' is no program$"):
        preflight.check(config(engine__type="mixed", vllm__workers=1, vllm__python="/nowhere/python"))
    preflight.check(config(engine__type="mixed", vllm__workers=1, vllm__python=sys.executable))
    preflight.check(config(engine__type="pbkv"))


def test_a_host_that_is_not_here() -> None:
    with pytest.raises(StartupError, match=r"^cluster\.host: nothing can listen on 192\.0\.2\.1 here"):
        preflight.check(config(cluster__host="192.0.2.1"))
    with pytest.raises(StartupError, match=r"^cluster\.ray_node_ip: nothing can listen on 192\.0\.2\.1 here"):
        preflight.check(config(cluster__ray_node_ip="192.0.2.1"))


def checkpoint(path: Path, **files: str) -> str:
    path.mkdir()
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return str(path)


def test_models_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    for path, problem in (
        (str(tmp_path / "nowhere"), "there is no directory"),
        ("./nowhere", "there is no directory"),
        ("~/model", "~ stands for nothing here"),
        ("gpt2", "is neither a directory nor a hub id, OWNER/NAME"),
        ("owner/na me", "is neither a directory nor a hub id"),
        (str(file), "is a file; name the directory"),
        (checkpoint(tmp_path / "a"), r"holds no checkpoint: config\.json: No such file"),
        (checkpoint(tmp_path / "b", config_json="{"), "is not a JSON object"),
        (checkpoint(tmp_path / "c", config_json="[]"), "is not a JSON object"),
        (checkpoint(tmp_path / "d", config_json="[" * 100_000), "is not a JSON object"),
        (checkpoint(tmp_path / "e", config_json="{}"), "holds no weights"),
    ):
        with pytest.raises(StartupError, match=rf"^model\.path: .*{problem}"):
            preflight.check(config(model__path=path))
    preflight.check(config(model__path="owner/name"))  # only the hub can tell


def test_a_state_that_could_not_be_saved(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, problem in ((tmp_path, "is a folder; name a file"), (tmp_path / "file" / "state", "is not a folder")):
        with pytest.raises(StartupError, match=rf"^predictor\.state_path: .*{problem}"):
            preflight.check(config(predictor__state_path=str(path)))
    preflight.check(config(predictor__state_path=str(tmp_path / "new" / "state")))


def test_a_ray_cluster_that_does_not_answer() -> None:
    port = free_port("127.0.0.1")
    with pytest.raises(StartupError, match=rf"^cluster\.address: no Ray cluster answers at 127\.0\.0\.1:{port}"):
        preflight.check(config(cluster__address=f"127.0.0.1:{port}"))
    with pytest.raises(StartupError, match=r"^cluster\.address: the port must be a number"):
        preflight.check(config(cluster__address="127.0.0.1:99999"))


def test_redis_and_the_cluster_s_name_are_checked() -> None:
    with pytest.raises(StartupError, match=r"^redis\.url: no Redis server answers at redis://\*\*\*@127\.0\.0\.1:1/0"):
        preflight.check(config(redis__url="redis://:secret@127.0.0.1:1/0"))
    with RedisServer.start() as server:
        settings = config(redis__url=server.url, cluster__name="taken")
        preflight.check(settings)

        async def announce() -> None:
            redis = connect(server.url)
            entry = GatewayEntry("gateway", "first", "node", "127.0.0.1:7", "", 1)
            await Directory(redis, "taken", 60.0).announce_gateway(entry)
            await redis.aclose()

        asyncio.run(announce())
        with pytest.raises(StartupError, match=r"^cluster\.name: a cluster 'taken' with its gateway at 127\.0\.0\.1:7"):
            preflight.check(settings)


def test_an_unknown_expert_is_named() -> None:
    with pytest.raises(InvalidArgument, match="'oracle' is unknown"):
        preflight.check(config(predictor__experts="linear,oracle"))


def test_stages_are_told_with_their_times() -> None:
    lines: list[str] = []
    clock = ManualClock()
    stages = Stages(lines.append, clock)
    clock.advance(0.25)
    stages.done("Ray started")
    clock.advance(3)
    stages.done("gateway ready")
    assert [line.strip() for line in lines] == ["0.2 s  Ray started (0.2 s)", "3.2 s  gateway ready (3.0 s)"]


def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = write_private(tmp_path / "secret", "s")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    make_private(path)
    assert path.stat().st_mode & 0o777 == 0o600
    make_private(tmp_path / "none")


def test_a_port_of_an_ipv6_host_can_be_taken() -> None:
    with listen("::1", 0) as server:
        port = server.getsockname()[1]
        with pytest.raises(StartupError, match=rf"^gateway\.port: cannot listen on \[::1\]:{port}: the port is in use"):
            preflight.check(config(cluster__host="::1", gateway__port=port))


def test_an_unknown_tool_format_is_told_before_anything_starts() -> None:
    with pytest.raises(InvalidArgument, match=r"model\.tool_format: 'xml' is unknown; choose one of hermes, llama3_json"):
        preflight.check(config(model__tool_format="xml"))
    preflight.check(config(model__tool_format="pbkv_cluster.gateway.http.tools.hermes:HermesFormat"))


def test_files_of_security_are_read_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^security\.credentials: cannot read .*keys\.yaml: No such file"):
        preflight.check(config(security__credentials=str(tmp_path / "keys.yaml")))
    own = Authority(tmp_path).sign("member")
    with pytest.raises(ConfigError, match=r"^security\.tls_certificate, security\.tls_key: "):
        preflight.check(config(security__tls_certificate=own.certificate, security__tls_key=own.ca))
    preflight.check(config(security__tls_certificate=own.certificate, security__tls_key=own.key, security__tls_ca=own.ca))
    with pytest.raises(ConfigError, match=r"security \(from flag\): tls_certificate and tls_key need each other"):
        config(security__tls_certificate=own.certificate)


@pytest.mark.parametrize(
    ("host", "dashboard", "warned"),
    [
        ("127.0.0.1", "127.0.0.1", ""),
        ("::1", "localhost", ""),
        ("10.0.0.1", "127.0.0.1", "10.0.0.1"),
        ("127.0.0.2", "0.0.0.0", "0.0.0.0"),
        ("10.0.0.1", "::", "10.0.0.1 or ::"),
    ],
)
def test_a_cluster_that_others_can_use_is_warned_of(tmp_path: Path, host: str, dashboard: str, warned: str) -> None:
    open_cluster = config(dashboard__host=dashboard)
    assert open_to_all(open_cluster, host).startswith(f"warning: everybody who can reach {warned} can use") is bool(warned)
    assert (open_to_all(open_cluster, host) == "") is not bool(warned)
    assert open_to_all(config(dashboard__host=dashboard, security__credentials="keys.yaml"), host) == ""
