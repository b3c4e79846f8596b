"""What the gateway adds up for metrics: exact, and bounded however many workloads there are."""

from prometheus_client.parser import text_string_to_metric_families

from pbkv_cluster.core.metrics.figures import Figures
from pbkv_cluster.core.usage import HitMeter, Tier, Usage
from pbkv_cluster.gateway.figures import put_workload
from pbkv_cluster.gateway.meter import GatewayMeter


def usage(number: int) -> Usage:
    return Usage(
        prompt_tokens=100 + number,
        available_tokens=80,
        delivered={Tier.GPU: 16, Tier.HOST: 32},
        computed_tokens=52 + number,
        generated_tokens=number % 3,
        prefill_s=0.5,
        ttft_s=1.0,
        total_s=2.0,
    )


def test_a_thousand_workloads_have_a_bounded_number_of_series_and_lose_no_token() -> None:
    meter, expected = GatewayMeter(32), HitMeter()
    for number in range(1000):
        meter.step_finished(usage(number), f"workload {number}", "")
        expected.add(usage(number))
    assert len(meter.workloads) == 33
    assert meter.totals == expected
    assert sum(each.prompt_tokens for each in meter.workloads.values()) == expected.prompt_tokens
    figures = Figures()
    for workload, each in meter.workloads.items():
        put_workload(figures, workload, each)
    families = {family.name: family for family in text_string_to_metric_families(figures.text().decode())}
    delivered = families["pbkv_workload_delivered_tokens"].samples
    assert len(delivered) == 33
    assert sum(sample.value for sample in delivered) == 48_000
    assert {sample.labels["workload"]: sample.value for sample in delivered}["other"] == 968 * 48


def test_only_steps_with_output_have_a_time_to_the_first_token() -> None:
    meter = GatewayMeter(0)
    for number in range(6):
        meter.step_finished(usage(number), "", "")
    assert (meter.ttft.count, meter.steps.count) == (4, 6)
    assert (meter.prefill_s, meter.decode_s) == (3.0, 0.0)
    assert list(meter.workloads) == ["other"]


def test_waits_are_told_apart_for_the_tenants_that_the_configuration_names() -> None:
    meter = GatewayMeter(0, ["paying", "other"])
    for tenant in ("paying", "paying", "", *(f"t{number}" for number in range(100)), "other"):
        meter.step_finished(Usage(queue_s=2.0), "", tenant)
    named = {tenant: waits.count for tenant, waits in meter.queue_waits.items()}
    assert (named.pop("paying"), named.pop("other"), len(named)) == (2, 100, 2)
    assert set(named.values()) == {1}, "the tenant without a name, and one whose name means something else"
