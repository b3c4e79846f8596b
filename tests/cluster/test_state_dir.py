"""Temporary folders: removed by their process or, after its death, by the next; never while their process lives."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pbkv_cluster.cluster.startup.state_dir import StateDir

OWNER = """
import sys
from pbkv_cluster.cluster.startup.state_dir import StateDir

print(StateDir.create().path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_close_removes_the_folder() -> None:
    state = StateDir.create()
    (state.path / "file").touch()
    state.close()
    state.close()
    assert not state.path.exists()


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_no_other(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        theirs = Path(owner.stdout.readline().strip())
        (theirs / "file").touch()
        unrelated = tmp_path / "pbkv-notes"
        unrelated.mkdir()
        first = StateDir.create()
        assert theirs.exists()
        assert first.path.exists()
        owner.kill()
        owner.wait()
        second = StateDir.create()
    assert not theirs.exists()
    assert first.path.exists()
    assert unrelated.exists()
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == [unrelated]


def test_a_link_of_that_name_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").touch()
    link = tmp_path / "pbkv-state-link"
    link.symlink_to(target)
    StateDir.create().close()
    assert (target / "precious").exists()
