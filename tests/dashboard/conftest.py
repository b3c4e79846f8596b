"""One small cluster with a dashboard for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.dashboard.small_cluster import SmallCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallCluster]:
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "model").mkdir()
    settings = {
        "dashboard__history_path": str(folder / "history.sqlite"),
        "engine__disk_path": str(folder / "disk"),
        "engine__disk_bytes": 1 << 20,
    }
    (folder / "disk").mkdir()
    with SmallCluster(folder / "model", **settings) as running:
        yield running
