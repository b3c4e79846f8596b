"""`pbkv serve` with API keys and TLS: every port asks for them, and members, commands and pages work with them."""

import base64
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pbkv_cluster.client import Client, Workflow
from pbkv_cluster.client.connection import Connection
from pbkv_cluster.core.errors import NotFound, PbkvError, Unauthenticated
from pbkv_cluster.core.security.tls import Tls
from pbkv_cluster.rpc.security import Access
from tests.certificates import Authority, Certificate
from tests.cluster.conftest import expect_none_left
from tests.polling import wait_for
from tests.secured import BLUE, KEYS, OPERATOR, RED

PBKV = [sys.executable, "-m", "pbkv_cluster.cli"]
START_S = 240.0
NEW = "key-that-came-later-01"
PROMPT = "The sea is deep and full of life. " * 8


@dataclass(frozen=True)
class Served:
    """What a shell sees of the cluster."""

    addresses: dict[str, str]  # first words of the lines that `serve` prints, and what follows
    own: Certificate
    keys: Path

    def pbkv(self, *arguments: str, key: str = OPERATOR, ca: str = "") -> subprocess.CompletedProcess[str]:
        shown = {"CERTIFICATE": self.own.certificate, "KEY": self.own.key, "CA": self.own.ca}
        settings = {f"PBKV_SECURITY_TLS_{name}": value for name, value in shown.items()}
        env = {**os.environ, **settings, "PBKV_API_KEY": key, "PBKV_TLS_CA": ca or self.own.ca}
        command = [*PBKV, *arguments, "--endpoint", self.addresses["gateway"]]
        return subprocess.run(command, capture_output=True, text=True, timeout=START_S, env=env)

    def get(self, url: str, authorization: str = "") -> bytes:
        request = urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})
        context = ssl.create_default_context(cafile=self.own.ca)
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return bytes(
                answer.read(1 << 20) if "events" not in url else answer.readline() + answer.readline() + answer.readline()
            )


@pytest.fixture
def served(small_model: Path, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # Ray's sockets need short paths
    own, keys = Authority(tmp_path).sign("member"), tmp_path / "keys.yaml"
    keys.write_text(KEYS)
    settings = {
        "cluster.workers": "2",
        "cluster.name": f"secure-{os.getpid()}",
        "model.path": str(small_model),
        "engine.gpu_blocks": "100",
        "gateway.port": "0",
        "gateway.http_port": "0",
        "security.credentials": str(keys),
        "security.tls_certificate": own.certificate,
        "security.tls_key": own.key,
        "security.tls_ca": own.ca,
        "logging.level": "debug",
    }
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([*PBKV, "serve", *flags], stdout=subprocess.PIPE, stderr=stream, text=True)
    try:
        yield Served(addresses(process, log), own, keys)
    finally:
        process.terminate()
        process.communicate(timeout=START_S)
    expect_none_left(mark)


def addresses(process: subprocess.Popen[str], log: Path) -> dict[str, str]:
    """What `serve` prints when it is ready."""
    assert process.stdout is not None
    found: dict[str, str] = {}
    for line in iter(process.stdout.readline, ""):
        name, _, value = line.partition(" ")
        found[name] = value.split()[0]
        if name == "try":
            return found
    raise AssertionError(log.read_text())


def refused(served: Served, url: str, authorization: str = "") -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        served.get(url, authorization)
    return caught.value.code


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_port_asks_for_a_key(served: Served, tmp_path: Path) -> None:
    gateway, ca = served.addresses["gateway"], served.own.ca

    # Commands.
    status = served.pbkv("status", "--check", "--json", "-")
    assert status.returncode == 0, status.stderr
    shown = json.loads(status.stdout)
    assert len(shown["workers"]) == 2
    assert served.pbkv("status", key="x" * 30).returncode == 1
    stranger = Authority(tmp_path, "stranger").ca
    assert served.pbkv("status", ca=stranger).returncode == 1
    submitted = served.pbkv("submit", "--agent", "a", "--max-tokens", "2", "Once", key=RED)
    assert submitted.returncode == 0, submitted.stderr

    # Clients, of which one cannot use what another's has cached.
    with Client(gateway, api_key=RED, tls_ca=ca) as red, Client(gateway, api_key=BLUE, tls_ca=ca) as blue:
        cached = [client.start_workflow().run(agent="a", prompt=PROMPT, max_tokens=2).usage for client in (red, red, blue)]
        assert [sum(usage.delivered.values()) > 0 for usage in cached] == [False, True, False]
        mine = red.start_workflow("mine")
        mine.run(agent="a", prompt=PROMPT, max_tokens=2)
        with pytest.raises(NotFound):
            Workflow(Connection(gateway, 30.0, Access(BLUE, Tls(ca=ca))), "mine", 60.0).end()
        assert served.pbkv("predictor", "explain", "mine").returncode == 0, "the predictor takes the cluster's certificate"
        mine.end()

    # A member, which takes nobody without a certificate of the cluster.
    with (
        pytest.raises(PbkvError, match=r"[Hh]andshake|connect"),
        Client(shown["workers"][0]["address"], api_key=OPERATOR, tls_ca=ca) as client,
    ):
        client.status()

    # Metrics and where they are, and the pages, which show that their own reads are let in.
    metrics, dashboard = served.addresses["metrics"], served.addresses["dashboard"]
    assert metrics.startswith("https://")
    assert refused(served, metrics) == 401
    assert refused(served, metrics, f"Bearer {RED}") == 403
    targets = json.loads(served.get(metrics, f"Bearer {OPERATOR}"))
    assert {target["labels"]["__scheme__"] for target in targets} == {"https"}
    for target in targets:
        url = f"https://{target['targets'][0]}/metrics"
        assert refused(served, url) == 401
        assert b"pbkv_build_info" in served.get(url, f"Bearer {OPERATOR}")
    assert refused(served, dashboard) == 401
    password = base64.b64encode(f"anybody:{OPERATOR}".encode()).decode()
    assert b"<html" in served.get(dashboard, f"Basic {password}")
    seen: list[bool] = []

    def all_answer() -> bool:
        data = served.get(f"{dashboard}api/events", f"Basic {password}").decode()
        found = re.search(r"^data: (.*)$", data, re.MULTILINE)
        seen[:] = [each["answers"] for each in json.loads(found[1]).get("members", [])] if found else []
        return len(seen) >= 6 and all(seen)

    wait_for(all_answer, 60.0, lambda: f"every member's metrics are read: {seen}")

    # A key that is added later.
    with Client(gateway, api_key=NEW, tls_ca=ca) as client:
        with pytest.raises(Unauthenticated):
            client.start_workflow()
        served.keys.write_text(f"[{{key: {NEW}, tenant: new}}]")

        def let_in() -> bool:
            try:
                client.start_workflow().end()
            except Unauthenticated:
                return False
            return True

        wait_for(let_in)

    logged = (tmp_path / "log").read_text() + "".join(
        path.read_text(errors="replace") for path in Path(shown["log_path"]).parent.glob("*") if path.is_file()
    )
    assert len(logged) > 1000
    assert not any(key in logged for key in (RED, BLUE, OPERATOR, NEW))
