"""Commands for operators where there is no cluster, where a stand-in runs, and where a directory stands for one."""

import asyncio
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pbkv_cluster.cli.operation.log_file import follow, last_lines, log_path, new_log
from pbkv_cluster.cluster.startup.run_record import RunRecord
from pbkv_cluster.cluster.startup.state_dir import StateDir
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.store.cluster_index import Directory, NodeRequest, NodeState, NodeStateEntry, RedisServer, connect
from tests.cli.conftest import LoopThread, Pbkv
from tests.polling import eventually


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(tempfile, "tempdir", None)


Listed = Callable[..., StateDir]


@pytest.fixture
def listed() -> Iterator[Listed]:
    """Lists this process as a cluster."""
    folders: list[StateDir] = []

    def make(name: str, log: str = "", redis_url: str = "", gateway: str = "127.0.0.1:5") -> StateDir:
        folders.append(StateDir.create())
        record = replace(RunRecord.of_this_process(name, log), gateway=gateway, redis_url=redis_url)
        record.write(folders[-1].path)
        return folders[-1]

    yield make
    for folder in folders:
        folder.close()


def test_without_a_cluster_each_command_says_so_in_one_line(pbkv: Pbkv) -> None:
    nothing = "no cluster of this user runs on this machine"
    assert pbkv("down") == (0, f"nothing to stop: {nothing}\n", "")
    assert json.loads(pbkv("down", "--json", "-").out) == {"cluster": None, "pid": None}
    assert pbkv("clusters", "--json", "-") == (0, "[]\n", f"{nothing}\n")
    for arguments in (("attach",), ("node", "ls"), ("node", "drain", "10.0.0.1")):
        assert pbkv(*arguments) == (1, "", f"pbkv: {nothing}\n")


async def refuse(endpoint: str) -> None:
    raise Unavailable(f"asked {endpoint}")


def test_without_an_address_the_one_cluster_of_this_machine_is_called(
    pbkv: Pbkv, listed: Listed, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PBKV_ADDRESS", raising=False)
    listed("starting", gateway="")
    listed("mine", gateway=endpoint)
    assert "worker-0" in pbkv("status").out
    assert "127.0.0.1:1" in pbkv("status", "--endpoint", "127.0.0.1:1").err, "an address that is given is called"
    monkeypatch.setenv("PBKV_ADDRESS", "127.0.0.1:2")
    assert "127.0.0.1:2" in pbkv("status").err
    monkeypatch.delenv("PBKV_ADDRESS")
    listed("another")
    monkeypatch.setattr("pbkv_cluster.cli.serving.status.fetch_status", refuse)
    assert pbkv("status").err == "pbkv: asked 127.0.0.1:26100\n", "which of two is not guessed"


def test_another_name_is_told_with_those_that_run(pbkv: Pbkv, listed: Listed) -> None:
    listed("mine")
    nothing = "no cluster 'yours' of this user runs on this machine; running: mine"
    assert pbkv("down", "yours") == (0, f"nothing to stop: {nothing}\n", "")
    assert pbkv("attach", "yours") == (1, "", f"pbkv: {nothing}\n")


def test_clusters_are_listed(pbkv: Pbkv, listed: Listed) -> None:
    listed("mine", log="/tmp/mine.log")
    (found,) = json.loads(pbkv("clusters", "--json", "-").out)
    assert (found["name"], found["pid"], found["gateway"], found["log_path"]) == (
        "mine",
        os.getpid(),
        "127.0.0.1:5",
        "/tmp/mine.log",
    )
    assert "redis" not in str(found)


def test_a_cluster_in_a_terminal_has_no_log_to_attach_to(pbkv: Pbkv, listed: Listed) -> None:
    listed("mine")
    found = pbkv("attach", "mine")
    assert found.code == 1
    assert found.err == f"pbkv: cluster 'mine' (process {os.getpid()}) prints to its own terminal, not to a log\n"


def test_a_second_cluster_of_the_same_name_is_not_detached(pbkv: Pbkv, listed: Listed) -> None:
    listed("pbkv")
    found = pbkv("serve", "--detach")
    assert found.code == 1
    assert found.err.startswith("pbkv: cluster.name: a cluster 'pbkv' runs here already")


def test_attach_shows_the_last_lines_and_what_follows_until_the_end(pbkv: Pbkv, listed: Listed) -> None:
    log = log_path("mine")
    with new_log(log) as file:
        file.write(b"one\ntwo\nthree\n")
        folder = listed("mine", log=str(log))

        def finish() -> None:
            file.write(b"four\n")
            folder.close()

        timer = threading.Timer(0.2, finish)
        timer.start()
        found = pbkv("attach", "--lines", "2")
        timer.join()
    assert found == (0, "two\nthree\nfour\n", "cluster mine has ended\n")


def test_a_new_log_is_private_and_keeps_the_last_one() -> None:
    path = log_path("mine")
    for text in (b"first", b"second"):
        with new_log(path) as file:
            file.write(text)
    assert path.read_text() == "second"
    assert path.with_name("mine.log.1").read_text() == "first"
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_written_just_before_the_end_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("a")

    def ends() -> bool:
        path.write_text("ab")  # by somebody who ends then
        return False

    assert "".join(follow(path, 0, ends)) == "ab"
    assert last_lines(path, 0) == ("", 2)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with RedisServer.start() as server:
        yield server.url


NODES = [
    NodeStateEntry("aaa111", "10.0.0.1", NodeState.SERVING),
    NodeStateEntry("aaa222", "10.0.0.2", NodeState.SERVING),
    NodeStateEntry("bbb333", "10.0.0.2", NodeState.UNUSED, "it has no GPU"),
]


async def announce(url: str, *entries: NodeStateEntry) -> None:
    redis = connect(url)
    directory = Directory(redis, "mine", 60.0)
    for entry in entries:
        await directory.announce_node_state(entry)
    await redis.aclose()


async def obey(url: str) -> str:
    """Does what is asked of the first node that something is asked of, as a cluster would. Returns the reason."""
    redis = connect(url)
    directory = Directory(redis, "mine", 60.0)
    requests: list[NodeRequest] = []

    async def asked() -> bool:
        requests.extend(await directory.node_requests())
        return bool(requests)

    await eventually(asked)
    (request,) = requests
    await directory.withdraw_node_request(request)
    (node,) = [each for each in NODES if each.node_id == request.node_id]
    state = NodeState.DRAINED if request.drain else NodeState.SERVING
    await directory.announce_node_state(NodeStateEntry(node.node_id, node.host, state, request.reason))
    await redis.aclose()
    return request.reason


def test_nodes_are_listed_drained_and_resumed(pbkv: Pbkv, listed: Listed, redis_url: str, loop_thread: LoopThread) -> None:
    asyncio.run(announce(redis_url, *NODES))
    listed("mine", redis_url=redis_url)
    states = {each["node_id"]: each["state"] for each in json.loads(pbkv("node", "ls", "--json", "-").out)}
    assert states == {"aaa111": "serving", "aaa222": "serving", "bbb333": "unused"}
    for arguments, said, state in (
        (("drain", "10.0.0.1", "--reason", "new memory"), "10.0.0.1 is drained\n", "drained"),
        (("resume", "aaa111"), "aaa111 serves\n", "serving"),
    ):
        asked = loop_thread.begin(obey(redis_url))
        assert pbkv("node", *arguments).out == said
        told = json.loads(pbkv("node", *arguments, "--json", "-").out)  # it is so already
        assert (told["node_id"], told["state"]) == ("aaa111", state)
        assert asked.result(60.0) == ("new memory" if arguments[0] == "drain" else "")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("10.0.0.9",), 1, "no node '10.0.0.9'; nodes: 10.0.0.1 (aaa111), 10.0.0.2 (aaa222), 10.0.0.2 (bbb333)"),
        (("10.0.0.2",), 2, "NODE: '10.0.0.2' is 2 nodes; give the beginning of an id"),
        (("aaa2", "--wait", "0"), 1, "after 0 s the node is serving, not drained"),
    ],
)
def test_a_wrong_node_is_told_in_one_line(pbkv: Pbkv, redis_url: str, arguments: tuple[str, ...], code: int, said: str) -> None:
    asyncio.run(announce(redis_url, *NODES))
    found = pbkv("node", "drain", *arguments, "--cluster", "mine", "--redis", redis_url)
    assert found.code == code
    (line,) = found.err.splitlines()
    assert line.startswith(f"pbkv: {said}")


def test_a_redis_without_the_cluster_says_so(pbkv: Pbkv, redis_url: str) -> None:
    found = pbkv("node", "ls", "--cluster", "other", "--redis", redis_url, "--json", "-")
    assert json.loads(found.out) == []
    found = pbkv("node", "drain", "10.0.0.1", "--cluster", "other", "--redis", redis_url)
    assert (found.code, found.err) == (1, "pbkv: there is no such cluster, or nobody follows its nodes\n")
