"""The host store that engines start themselves: found by its name, and found again with all blocks when it has died."""

import os
import signal
import tempfile
import threading
from pathlib import Path

import psutil
import pytest

from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.integrations.engine_store.node_store.files import StoreFiles
from tests.integrations.engine_store.engines import engine, got, keys, node, put, settings
from tests.polling import wait_for


def processes(name: str) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if name in (each.info["cmdline"] or ())]


def test_the_first_engine_starts_it_and_a_killed_one_is_replaced() -> None:
    here = settings(keep_s=2.0)
    with engine(here) as one:
        (process,) = processes(here.name)
        put(one, 1, 2)
        process.send_signal(signal.SIGKILL)
        process.wait(10.0)
        assert got(one, 1, 2) == [1, 2]
        assert put(one, 3) == [True]
        wait_for(lambda: bool(StoreFiles(here.name).address()))  # the engine has started another one
        with engine(here) as two:
            wait_for(lambda: two.leading(keys(1, 2, 3)) == 3)
            assert got(two, 1, 2, 3) == [1, 2, 3]
            assert two.owner != one.owner
        (process,) = processes(here.name)
    process.wait(30.0)  # no engine uses it any more


def test_a_name_has_one_store() -> None:
    here = settings()
    with node(here):
        assert StoreFiles(here.name).take() is None
    assert StoreFiles(here.name).address() is None


def test_who_looks_for_a_store_is_not_in_the_way_of_one_that_starts() -> None:
    files = StoreFiles(settings().name)
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            files.address()

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(500):
            file = files.take()
            assert file is not None, "somebody who looked has been taken for a store"
            os.close(file)
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    StoreFiles("engines")
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert str(os.getuid()) in folder.name
    folder.chmod(0o777)
    with pytest.raises(StartupError, match="only this user"):
        StoreFiles("engines")
