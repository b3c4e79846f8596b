import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pbkv_cluster.store.arena.arena import default_directory


@pytest.fixture(scope="session")
def shared_dir() -> Iterator[Path]:
    """A folder in the machine's shared memory."""
    with tempfile.TemporaryDirectory(dir=default_directory()) as directory:
        yield Path(directory)
