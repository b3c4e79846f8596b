"""`ray up deploy/cluster.local.yaml`, a workload and the shutdown, over ssh on hosts that are network namespaces.

Only addresses, user and key of the file are replaced.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.namespace_hosts import BIN, ROOT, Network, missing_program
from tests.polling import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(missing_program()), reason=missing_program()),
]

HEAD, FIRST, LATER = 1, 2, 3
UP_S = 900.0
SOON_S = 400.0
TOKENS = 600


@pytest.fixture
def network(tmp_path: Path, small_model: Path) -> Iterator[Network]:
    made = Network(
        tmp_path,
        {
            "PBKV_MODEL_PATH": str(small_model),
            "PBKV_MODEL_DTYPE": "float64",
            "PBKV_ENGINE_DEVICE": "cpu",
            "PBKV_ENGINE_GPU_BLOCKS": "600",
            "PBKV_ENGINE_HOST_BLOCKS": "600",
            "PBKV_CLUSTER_START_TIMEOUT_S": "600",
            "RAY_gcs_server_port_wait_time_s": "180",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )
    try:
        yield made
    finally:
        made.close()


def write_config(path: Path, network: Network, head: str, workers: list[str]) -> Path:
    config = yaml.safe_load((ROOT / "deploy" / "cluster.local.yaml").read_text())
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(network.key)}
    # The hosts have no network, so they run the small random model; and they are one machine, whose memory they share.
    sizes = "--gpu-blocks 2048 --set engine.host_blocks=4096 --set host_store.memory_share=0.25"
    config["head_start_ray_commands"] = [
        re.sub(r"--model \S+ .*", sizes, command) if "pbkv serve" in command else command
        for command in config["head_start_ray_commands"]
    ]
    path.write_text(yaml.safe_dump(config))
    return path


def ray(network: Network, command: str, config: Path, *flags: str) -> str:
    done = network.run([str(BIN / "ray"), command, str(config), "-y", *flags], UP_S)
    assert done.returncode == 0, f"ray {command}: {done.stdout[-6000:]} {done.stderr[-3000:]}"
    return done.stdout


def status(network: Network, endpoint: str) -> dict[str, Any]:
    done = network.run([str(BIN / "pbkv"), "status", "--endpoint", endpoint, "--json", "-"])
    return json.loads(done.stdout) if done.returncode == 0 else {"nodes": [], "workers": []}


def serving(found: dict[str, Any]) -> set[str]:
    """The hosts that serve with all their workers."""
    up = {each["address"].rpartition(":")[0] for each in found["workers"] if each["reachable"]}
    return {node["host"] for node in found["nodes"] if node["state"] == "serving"} & up


def await_hosts(network: Network, endpoint: str, *hosts: str) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []

    def there() -> bool:
        seen.append(status(network, endpoint))
        return serving(seen[-1]) == {*hosts} and len(seen[-1]["nodes"]) == len(hosts)

    wait_for(there, SOON_S, lambda: f"{hosts} do not serve: {seen[-1]}")
    return seen[-1]


class Steps:
    """Steps of a client on the operator's machine."""

    def __init__(self, network: Network, endpoint: str, count: int) -> None:
        self._count = count
        self._process = network.popen(
            [str(BIN / "python"), "-m", "tests.cluster.long_steps", endpoint, str(count), str(TOKENS)]
        )

    def await_start(self) -> None:
        assert self._process.stdout is not None
        for _ in range(self._count):
            assert self._process.stdout.readline() == "started\n"

    def workers(self) -> set[str]:
        """Waits until all have ended, none with an error and all complete. Returns the workers that finished them."""
        out, _ = self._process.communicate(timeout=SOON_S)
        assert self._process.returncode == 0, "a step failed"
        done = json.loads(out.splitlines()[-1])
        assert [tokens for tokens, _ in done] == [TOKENS] * self._count
        return {worker for _, worker in done}


def workers_of(found: dict[str, Any], host: str) -> set[str]:
    return {each["worker_id"] for each in found["workers"] if each["address"].startswith(f"{host}:")}


def test_ray_up_a_workload_a_loss_a_new_host_and_the_shutdown(network: Network, tmp_path: Path) -> None:
    head, first = network.add(HEAD), network.add(FIRST)
    endpoint = f"{head}:26100"
    config = write_config(tmp_path / "cluster.yaml", network, head, [first])
    ray(network, "up", config)

    found = await_hosts(network, endpoint, head, first)
    steps = Steps(network, endpoint, 6)
    assert steps.workers() == workers_of(found, head) | workers_of(found, first)

    victims = workers_of(found, first)
    steps = Steps(network, endpoint, 6)
    steps.await_start()
    network.kill(first)
    assert not steps.workers() & victims
    await_hosts(network, endpoint, head)

    later = network.add(LATER)
    for command in yaml.safe_load(config.read_text())["worker_start_ray_commands"]:
        network.at(later, f"export RAY_HEAD_IP={head}; {command}", SOON_S)
    found = await_hosts(network, endpoint, head, later)
    assert workers_of(found, later) & Steps(network, endpoint, 6).workers()

    assert "stopped" in network.at(head, "pbkv down", SOON_S)
    assert "nothing to stop" in network.at(head, "pbkv down")
    ray(network, "down", config)
    network.at(later, "ray stop", SOON_S)  # its raylet would end by itself, but not Ray's monitor of logs
    for host in (head, later):
        wait_for(lambda host=host: not network.processes(host), SOON_S, lambda host=host: f"{host}: {network.processes(host)}")  # type: ignore[misc]
        left = network.at(host, 'ls "$TMPDIR"').split()
        assert [name for name in left if name.startswith("pbkv-")] == []
