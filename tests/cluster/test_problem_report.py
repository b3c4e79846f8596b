"""What a member tells the directory of its problems."""

import asyncio

from pbkv_cluster.cluster.membership.problems.problem_report import ProblemReport
from pbkv_cluster.cluster.membership.problems.problem_watch import ProblemWatch
from pbkv_cluster.store.cluster_index import Directory, ProblemsEntry, RedisServer, connect


async def test_problems_are_told_while_they_last() -> None:
    problems: list[str] = []
    with RedisServer.start() as server:
        redis = connect(server.url)
        directory = Directory(redis, "test", ttl_s=60.0)
        report = ProblemReport(directory, "predictor", lambda: problems)
        await report.announce()
        assert await directory.problems() == []
        problems.append("the disk is full " + "x" * 2000)
        await report.announce()
        assert await directory.problems() == [ProblemsEntry("predictor", (problems[0][:1000],))]
        problems.extend(["more"] * 50)
        await report.announce()
        assert len((await directory.problems())[0].problems) == 16
        problems.clear()
        await report.announce()
        assert await directory.problems() == []
        lines: list[str] = []
        watch = ProblemWatch(server.url, "test", 60.0, lines.append)
        problems.append("again")
        await report.announce()
        for _ in range(2):
            await asyncio.to_thread(watch.poll)
        assert lines == ["problem: predictor: again"]
        spans = ProblemReport(directory, "otel", reasons=lambda: {"span_late": 2})
        await spans.announce()
        assert ProblemsEntry("otel", (), {"span_late": 2}) in await directory.problems()
        await asyncio.to_thread(watch.poll)
        assert lines[1:] == [], "a count is no problem"
        await report.withdraw()
        await spans.withdraw()
        await asyncio.to_thread(watch.poll)
        assert lines[1:] == ["over: predictor: again"]
        assert await directory.problems() == []
        await redis.aclose()
    await asyncio.to_thread(watch.poll)  # without Redis nothing changes
    await asyncio.to_thread(watch.close)
    assert len(lines) == 2
