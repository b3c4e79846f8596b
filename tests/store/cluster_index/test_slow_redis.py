"""A Redis that takes its time, but less than the time-out: it is slow, and not lost."""

from pathlib import Path

from pbkv_cluster.store.cluster_index import connect
from tests.polling import eventually
from tests.store.cluster_index.published import KEYS, PublishedWorker
from tests.store.redis_connection.proxy import proxy_of
from tests.store.redis_connection.servers import serving


async def test_changes_arrive_through_a_redis_that_is_slow(tmp_path: Path) -> None:
    """Each answer comes half a second late: many changes are made meanwhile."""
    with serving(tmp_path) as server:
        async with proxy_of(server) as proxy:
            client = connect(f"redis://127.0.0.1:{proxy.port}", timeout_s=5.0)
            worker = PublishedWorker(client)
            async with worker.published():
                proxy.delay_s = 0.5
                for some in (KEYS[10:15], KEYS[15:20], KEYS[20:]):
                    worker.hold(some)
                    await eventually(lambda: len(worker.mirror.blocks) == len(worker.blocks))
                await eventually(worker.is_known)
                publisher = worker.publisher
                assert (publisher.outages, publisher.announcements, worker.mirror.repairs) == (0, 1, 0)
                proxy.delay_s = 0.0
            await client.aclose()
