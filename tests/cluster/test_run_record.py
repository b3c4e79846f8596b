"""What is known of clusters on this machine, and how one is ended from another process."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pbkv_cluster.cluster.startup.run_record import RunRecord, find, running
from pbkv_cluster.cluster.startup.shutdown import end
from pbkv_cluster.core.errors import InvalidArgument, NotFound
from tests.cluster.conftest import expect_none_left, marked
from tests.polling import wait_for

# Serves nothing, but has a record, a child and a grandchild. Ends at SIGTERM, unless it is to ignore that.
SERVER = """
import os, signal, subprocess, sys
from pbkv_cluster.cluster.startup.run_record import RunRecord
from pbkv_cluster.cluster.startup.state_dir import StateDir

name, obeys = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: sys.exit() if obeys == "obeys" else None)
folder = StateDir.create()
sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import threading; threading.Event().wait()'])"
child = subprocess.Popen([sys.executable, "-c", sleeper], start_new_session=True)
print(RunRecord.of_this_process(name, "").write(folder.path).folder, flush=True)
try:
    while True:
        signal.pause()
finally:
    os.killpg(child.pid, signal.SIGTERM)
    folder.close()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def server(name: str, obeys: str = "obeys") -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", SERVER, name, obeys], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_clusters_are_found_by_name_while_they_run() -> None:
    assert running() == []
    with server("one") as one, server("two") as two:
        assert [(each.name, each.pid) for each in running()] == [("one", one.pid), ("two", two.pid)]
        assert find("two").pid == two.pid
        with pytest.raises(InvalidArgument, match="several clusters run here: one "):
            find("")
        with pytest.raises(NotFound, match="no cluster 'three' of this user runs on this machine; running: one, two"):
            find("three")
        two.kill()
        two.wait()
        assert find("").pid == one.pid
    with pytest.raises(NotFound, match=r"no cluster of this user runs on this machine$"):
        find("")


def test_clusters_of_one_name_are_told_apart_by_process() -> None:
    with server("same") as one, server("same") as two:
        with pytest.raises(InvalidArgument, match="--pid"):
            find("same")
        assert find("same", one.pid).pid == one.pid
        assert find("", two.pid).pid == two.pid


def test_a_record_is_for_its_owner_alone(temporary: Path) -> None:
    with server("one"):
        folder = Path(find("one").folder)
        assert folder.stat().st_mode & 0o077 == 0
        (file,) = folder.glob("*.json")
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_process_of_another_container_is_none_of_ours(temporary: Path) -> None:
    with server("one"):
        record = find("one")
        replace(record, pid_namespace=1).write(Path(record.folder))
        assert running() == []


def test_what_is_no_record_is_no_cluster(temporary: Path) -> None:
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"name": "x"}')):
        folder = temporary / f"pbkv-state-{name}"
        folder.mkdir()
        (folder / "cluster.json").write_text(text)
    assert running() == []


def test_the_end_of_a_cluster_is_awaited_with_all_its_processes(mark: str) -> None:
    said: list[str] = []
    with server("one"):
        wait_for(lambda: len(marked(mark)) == 3)
        record = find("one")
        end(record, 30.0, said.append)
        assert marked(mark) == []
        assert said == []
        end(record, 30.0, said.append)
    assert running() == []


def test_what_does_not_end_is_killed_and_told(mark: str) -> None:
    said: list[str] = []
    with server("one", "ignores") as process:
        wait_for(lambda: len(marked(mark)) == 3)
        end(find("one"), 0.5, said.append)
        assert process.wait() == -signal.SIGKILL
        assert said == ["3 processes did not end in 0.5 s; they are killed"]
        expect_none_left(mark)
    assert running() == []


def test_a_record_says_nothing_of_the_password_when_it_is_printed() -> None:
    record = replace(RunRecord.of_this_process("one", ""), redis_url="redis://:secret@127.0.0.1:1/0")
    assert "secret" not in repr(record)
