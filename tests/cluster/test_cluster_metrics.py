"""Metrics of a real cluster: they equal what status and usage records say, and follow members that come and go."""

import os
import random
import signal
import urllib.error
import urllib.request

import pytest

from pbkv_cluster.client import AsyncClient, Client
from pbkv_cluster.cluster.local import LocalCluster
from pbkv_cluster.core.metrics import names
from pbkv_cluster.core.metrics.metric import Kind, Source
from pbkv_cluster.core.usage import HitMeter, Usage
from tests.cluster.scrape import Scraped, discover, scrape, scrape_all
from tests.polling import eventually, wait_for

MEMBERS = {
    "gateway": Source.GATEWAY,
    "predictor": Source.PREDICTOR,
    "otel": Source.OTEL,
    "host-store-0": Source.HOST_STORE,
    "worker-0": Source.WORKER,
    "worker-1": Source.WORKER,
    "head": Source.HEAD,
}


def ids(length: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(5, 4000) for _ in range(length)]


def work(cluster: LocalCluster, seed: int, workload: str) -> list[Usage]:
    """A few workflows with shared prompts; returns their usage records."""
    usage = []
    with Client(cluster.gateway_address) as client:
        for number in range(3):
            with client.start_workflow(workload=workload) as workflow:
                context = ids(160, seed)
                for step in range(3):
                    result = workflow.run(agent=f"a{step}", prompt=context, max_tokens=4, ignore_eos=True)
                    usage.append(result.usage)
                    context += [*result.token_ids, *ids(20, seed + number + step)]
    return usage


def members_are_up(cluster: LocalCluster) -> bool:
    return discover(cluster.discovery_url).keys() == MEMBERS.keys()


def growth(before: Scraped, after: Scraped, name: str, **labels: str) -> float:
    return after.value(name, **labels) - before.value(name, **labels)


def test_every_member_serves_the_metrics_that_are_named_and_no_others(cluster: LocalCluster) -> None:
    cluster.pids()
    wait_for(lambda: members_are_up(cluster))
    work(cluster, 7000, "named")
    targets = discover(cluster.discovery_url)
    assert {name: target["kind"] for name, target in targets.items()} == MEMBERS
    assert {target["cluster"] for target in targets.values()} == {cluster.name}
    assert all(target["address"].startswith("127.0.0.1:") for target in targets.values())
    served: dict[Source, dict[str, str]] = {}
    for name, scraped in scrape_all(cluster.discovery_url).items():
        own = {family: kind for family, kind in scraped.families.items() if not family.startswith("process_")}
        served.setdefault(MEMBERS[name], {}).update(own)
        assert scraped.value("process_resident_memory_bytes") > 1e6
    for source in MEMBERS.values():
        named = {
            metric.name.removesuffix("_total"): metric.kind
            for metric in names.ALL
            if source in metric.sources or Source.ALL in metric.sources
        }
        assert served[source] == named


def test_a_scrape_equals_status_and_usage_records(cluster: LocalCluster) -> None:
    cluster.pids()
    wait_for(lambda: members_are_up(cluster))
    address = discover(cluster.discovery_url)["gateway"]["address"]
    before, usage, after = scrape(address), work(cluster, 7100, "compared"), scrape(address)
    meter = HitMeter()
    for each in usage:
        meter.add(each)
    assert growth(before, after, "pbkv_steps_total", outcome="finished") == len(usage) == 9
    assert growth(before, after, "pbkv_prompt_tokens_total") == meter.prompt_tokens
    assert growth(before, after, "pbkv_available_tokens_total") == meter.available_tokens > 0
    assert growth(before, after, "pbkv_computed_tokens_total") == meter.computed_tokens
    assert growth(before, after, "pbkv_generated_tokens_total") == meter.generated_tokens == 36
    for metric, by_tier in (("captured", meter.captured), ("delivered", meter.delivered)):
        found = {tier: growth(before, after, f"pbkv_{metric}_tokens_total", tier=tier) for tier in ("gpu", "host")}
        assert {tier: tokens for tier, tokens in found.items() if tokens} == by_tier
    assert after.value("pbkv_workload_prompt_tokens_total", workload="compared") == meter.prompt_tokens
    assert growth(before, after, "pbkv_ttft_seconds_count") == growth(before, after, "pbkv_step_seconds_count") == 9
    assert growth(before, after, "pbkv_step_seconds_sum") == pytest.approx(sum(each.total_s for each in usage))
    assert growth(before, after, "pbkv_workflow_seconds_count") == 3
    assert growth(before, after, "pbkv_step_phase_seconds_total", phase="prefill") == pytest.approx(
        sum(each.prefill_s for each in usage)
    )


async def test_every_counter_of_a_status_is_a_metric(cluster: LocalCluster) -> None:
    cluster.pids()
    await eventually(lambda: members_are_up(cluster))
    work(cluster, 7200, "trips")
    async with AsyncClient(cluster.gateway_address) as client:
        status = await client.status()
        members = scrape_all(cluster.discovery_url)
        while (after := await client.status()).workers != status.workers:  # access logs are sent when all else is over
            status, members = after, scrape_all(cluster.discovery_url)
    assert status.discovery_url == cluster.discovery_url
    gateway = members["gateway"]
    assert gateway.by("pbkv_gateway_decisions_total", "reason") == dict(status.decisions)
    assert gateway.value("pbkv_prompt_tokens_total") == status.totals.prompt_tokens
    assert gateway.value("pbkv_open_workflows") == status.open_workflows
    for worker in status.workers:
        scraped = members[worker.worker_id]
        reasons = {
            **scraped.by("pbkv_cache_blocks_total", "reason"),
            **scraped.by("pbkv_scheduler_decisions_total", "reason"),
            **{f"access_log_{key}": value for key, value in scraped.by("pbkv_access_logs_total", "outcome").items()},
        }
        assert reasons == {code: times for code, times in worker.store.decisions.items() if times}
        for tier in worker.store.tiers:
            name = {1: "gpu", 2: "host"}[tier.tier]
            assert scraped.value("pbkv_tier_capacity_bytes", tier=name) == tier.capacity_blocks * tier.block_bytes
            assert scraped.value("pbkv_tier_used_bytes", tier=name) == tier.used_blocks * tier.block_bytes
        blocks = {outcome: times * 16 for outcome, times in scraped.by("pbkv_prefetched_blocks_total", "outcome").items()}
        prefetch = worker.store.prefetch
        assert blocks.get("loaded", 0) == prefetch.loaded_tokens
        assert [blocks.get(each, 0) for each in ("used", "wasted", "cancelled")] == [
            prefetch.used_tokens,
            prefetch.wasted_tokens,
            prefetch.cancelled_tokens,
        ]
        guard = worker.store.guard
        assert scraped.value("pbkv_guard_prompt_tokens_total") == guard.prompt_tokens
        assert scraped.value("pbkv_guard_hit_tokens_total", order="cache") == guard.hits.tokens
        assert scraped.value("pbkv_guard_hit_tokens_total", order="lru") == guard.lru_hits.tokens
    store = members["host-store-0"]
    assert store.value("pbkv_arena_region_bytes", worker="worker-0") > 0
    predictor = members["predictor"]
    assert predictor.value("pbkv_predictor_events_total", outcome="accepted") > 0
    assert predictor.value("pbkv_forecast_subscribers") == 2


def test_counters_never_fall(cluster: LocalCluster) -> None:
    cluster.pids()
    wait_for(lambda: members_are_up(cluster))
    before = scrape_all(cluster.discovery_url)
    work(cluster, 7300, "more")
    after = scrape_all(cluster.discovery_url)
    kinds = {metric.name: metric.kind for metric in names.ALL}
    for member, scraped in before.items():
        for key, value in scraped.samples.items():
            base = key[0].removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            if kinds.get(base) in (Kind.COUNTER, Kind.HISTOGRAM):
                assert after[member].samples[key] >= value, (member, key)


@pytest.mark.parametrize("path", ["/", "/metrics/..", "/discovery/x", "/%2e%2e/metrics"])
def test_other_paths_are_not_found(cluster: LocalCluster, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(cluster.discovery_url.removesuffix("/discovery") + path, timeout=20)
    assert caught.value.code == 404


def test_a_member_that_was_killed_is_found_again_and_its_restart_counted(cluster: LocalCluster) -> None:
    pids = cluster.pids()
    wait_for(lambda: members_are_up(cluster))
    before = discover(cluster.discovery_url)
    restarts = scrape(before["head"]["address"]).value("pbkv_member_restarts_total", member="predictor")
    os.kill(pids["predictor"], signal.SIGKILL)

    def moved() -> bool:
        now = discover(cluster.discovery_url)
        return "predictor" in now and now["predictor"]["address"] != before["predictor"]["address"]

    wait_for(moved, 90)
    assert cluster.pids(90)["predictor"] != pids["predictor"]
    head = scrape(before["head"]["address"])
    assert head.value("pbkv_member_restarts_total", member="predictor") == restarts + 1
    assert head.value("pbkv_member_up", member="predictor") == 1
    wait_for(lambda: members_are_up(cluster))
    assert scrape(discover(cluster.discovery_url)["predictor"]["address"]).value("pbkv_problems") == 0
