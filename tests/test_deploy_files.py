"""The files for deployment: valid by the schemas of those who read them, and in step with our commands and settings."""

import importlib.metadata
import itertools
import json
import re
import shutil
import ssl
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from typer.testing import CliRunner

from pbkv_cluster.cli.main import app
from pbkv_cluster.core.config import Config
from pbkv_cluster.core.config.sources import fields
from pbkv_cluster.core.locations.model_path import local_model
from tests.certificates import Authority

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
RAY_UP = ("cluster.local.yaml", "cluster.aws.yaml")
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_takes_it(name: str) -> None:
    config = read(name)
    jsonschema.validate(config, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"workers": 3}, SCHEMA)


@pytest.mark.parametrize("name", RAY_UP)
def test_bounds_of_machines_are_consistent(name: str) -> None:
    config = read(name)
    types = config.get("available_node_types")
    if types is None:
        assert config["provider"]["head_ip"] not in config["provider"]["worker_ips"]
        return
    assert config["head_node_type"] in types
    for kind in types.values():
        assert 0 <= kind.get("min_workers", 0) <= kind.get("max_workers", config["max_workers"]) <= config["max_workers"]


def test_hosts_of_ones_own_are_started_by_the_autoscaler_that_can() -> None:
    """Version 2, the default of Ray 2.60, never starts the workers of provider `local`."""
    (start,) = [line for line in read("cluster.local.yaml")["head_start_ray_commands"] if "ray start" in line]
    assert re.search(r"RAY_enable_autoscaler_v2=0 .*ray start --head ", start)


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_does_not_kill_or_starve_members(name: str) -> None:
    config = read(name)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = [line for line in commands if "ray start" in line]
        assert "RAY_memory_monitor_refresh_ms=0" in start
        assert "RAY_worker_niceness=0" in start


def commands(name: str) -> list[list[str]]:
    """Every `pbkv` command in a file, comments included, up to where a shell would end it."""
    text = re.sub(r"\n\s+(?=--)", " ", (DEPLOY / name).read_text())
    found = re.findall(
        r"(?<![\w/])(?:/opt/pbkv_cluster/\.venv/bin/)?pbkv ((?:serve|status|down|node|clusters|attach)\b[^\n;&|'\"`]*)", text
    )
    return [each.split() for each in found]


@pytest.mark.parametrize("name", [*RAY_UP, "kuberay.yaml", "pbkv.service", "Dockerfile"])
def test_commands_have_the_options_that_are_used(name: str) -> None:
    used = commands(name)
    assert [words for words in used if words[0] == "serve"], "it starts the service"
    known = {path for path, _ in fields()}
    for words in used:
        shown = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "300", "TERM": "dumb"}).output
        for option in [word for word in words if word.startswith("--")]:
            assert option in shown, f"{name}: pbkv {words[0]} {option}"
        for assignment in [after for word, after in itertools.pairwise(words) if word == "--set"]:
            assert assignment.partition("=")[0] in known, f"{name}: {assignment}"


@pytest.mark.parametrize("name", [*RAY_UP, "kuberay.yaml"])
def test_clusters_serve_a_real_model_and_have_time_to_fetch_it(name: str) -> None:
    (serve,) = [words for words in commands(name) if words[0] == "serve" and "--address" in words]
    model = serve[serve.index("--model") + 1]
    assert local_model(model) is None, "an id on the hub, which needs no folder on the machines"
    (wait_s,) = [word.partition("=")[2] for word in serve if word.startswith("cluster.start_timeout_s=")]
    assert int(wait_s) > Config().cluster.start_timeout_s
    assert not [word for word in serve if "gpu_blocks" in word or "host_blocks" in word], "the machine decides"


def test_probes_need_no_key_and_no_certificate() -> None:
    cluster, _ = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for (container,) in [group["template"]["spec"]["containers"] for group in groups]:
        for probe in ("readinessProbe", "livenessProbe"):
            assert "pbkv" not in str(container[probe].get("exec", "")), (
                "a command of ours asks for a key where clients must have one"
            )
    (head,) = groups[0]["template"]["spec"]["containers"]
    assert head["readinessProbe"]["tcpSocket"]["port"] in {each["name"] for each in head["ports"]}
    check = re.search(r"^HEALTHCHECK .*CMD (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert check is not None
    assert json.loads(check[1])[2].startswith("python deploy/healthcheck.py ")


class _Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("tls", [False, True])
def test_the_image_s_check_asks_the_gateway_with_and_without_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Health) as server:
        if tls:
            files = Authority(tmp_path).sign("container")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(files.certificate, files.key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        assert check_health(server.server_port) == 0
        monkeypatch.setattr(_Health, "status", 503)
        assert check_health(server.server_port) == 1
        server.shutdown()
    assert check_health(server.server_port) == 1, "nobody listens any more"


def check_health(port: int) -> int:
    return subprocess.run([sys.executable, str(DEPLOY / "healthcheck.py"), "127.0.0.1", str(port)], timeout=60).returncode


@pytest.mark.parametrize("driver", [False, True])
def test_make_installs_the_extra_for_gpus_where_there_is_a_driver(tmp_path: Path, driver: bool) -> None:
    for tool in ("make", "sh", "grep", "awk", "python3"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or pytest.skip(f"needs {tool}"))
    if driver:
        (tmp_path / "nvidia-smi").symlink_to("/bin/true")
    done = subprocess.run(
        ["make", "-n", "-C", str(ROOT), "venv", f"VENV={tmp_path}/venv", "SHELL=/bin/sh"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (extras,) = re.findall(r"-e '\.\[(.+)\]'", done.stdout)
    assert ("gpu" in extras.split(",")) == driver
    assert {*extras.split(",")} <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ].keys()


def test_kubernetes_pods_have_no_rights_and_match_this_ray() -> None:
    cluster, service = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["spec"]["rayVersion"] == importlib.metadata.version("ray")
    assert cluster["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    head, workers = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    for group in (head, *workers):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert "$KUBERAY_GEN_RAY_START_CMD" in container["args"][0]
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert mounted == {each["name"] for each in pod["volumes"]}
    for group in workers:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert service["spec"]["selector"] == {"ray.io/cluster": cluster["metadata"]["name"], "ray.io/node-type": "head"}
    (head_container,) = head["template"]["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in head_container["ports"]}
    assert ports[service["spec"]["ports"][0]["targetPort"]] == service["spec"]["ports"][0]["port"] == 26100


def test_the_image_is_of_a_user_without_rights_and_copies_what_is_there() -> None:
    lines = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text()).splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if re.match(r"[A-Z]+ ", line)]
    assert instructions[0][0] == "FROM"
    users = [index for index, (word, _) in enumerate(instructions) if word == "USER"]
    assert instructions[users[-1]][1] == "10001:10001"
    assert not [word for word, _ in instructions[users[-1] :] if word == "RUN"], "nothing runs as another user after that"
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [path for word, rest in instructions if word == "COPY" for path in rest.split()[:-1]]
    assert sources
    for path in sources:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, path
    (torch,) = [rest for word, rest in instructions if word == "ARG" and rest.startswith("TORCH=")]
    assert torch.removeprefix("TORCH=") in (ROOT / "constraints.txt").read_text().splitlines()
    (extras,) = [rest for word, rest in instructions if word == "ARG" and rest.startswith("EXTRAS=")]
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*extras.removeprefix("EXTRAS=").split(",")} <= known.keys()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "pbkv.service").read_text()
    unit = tmp_path / "pbkv.service"
    unit.write_text(text.replace("/opt/pbkv_cluster/.venv/bin/pbkv", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=sometimes"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert "kill mode" in done.stderr


def test_the_document_uses_files_and_commands_that_exist() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    for path in re.findall(r"deploy/[\w.]+", "\n".join(lines)):
        assert (ROOT / path).exists(), path
    used = [words.split() for line in lines for words in re.findall(r"(?:^|-- |')pbkv ([^']*)", line)]
    assert len(used) > 10
    for words in used:
        page = [words[0], words[1]] if words[0] == "node" else [words[0]]
        done = CliRunner().invoke(app, [*page, "--help"], env={"COLUMNS": "300", "TERM": "dumb"})
        assert done.exit_code == 0, words
        for option in [word for word in words if word.startswith("--")]:
            assert option in done.output, f"pbkv {' '.join(words)}"
    ray_commands = (Path(ray.__file__).parent / "scripts" / "scripts.py").read_text()
    for command in re.findall(r"^ray (\w+)", "\n".join(lines), re.MULTILINE):
        assert f"def {command}(" in ray_commands, f"ray {command}"
