"""Requests that schemathesis makes from the OpenAPI document, PBKV_FUZZED_REQUESTS of them, at a real cluster.

They come in rounds, each of which has the same requests whenever it is run: PBKV_FUZZED_ROUND is the first one, by default 0.
"""

import os
from collections import Counter

import psutil
import pytest
import requests

from pbkv_cluster.cluster.local import LocalCluster
from tests.gateway.http.fuzzing import fuzz

REQUESTS = int(os.environ.get("PBKV_FUZZED_REQUESTS", "100_000"))
FIRST = int(os.environ.get("PBKV_FUZZED_ROUND", "0"))
EXAMPLES = 100  # of a round, for each path and kind
GROWTH_BYTES = 64 << 20  # that the gateway may keep of all requests after the first tenth


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_no_request_is_a_defect(cluster: LocalCluster) -> None:
    url = f"http://{cluster.http_address}"
    model = requests.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"]
    document = requests.get(f"{url}/openapi.json", timeout=60).json()
    gateway = psutil.Process(cluster.pids()["gateway"])
    statuses: Counter[tuple[str, int]] = Counter()
    resident: list[int] = []  # bytes of the gateway, after each round
    number = FIRST
    while statuses.total() < REQUESTS:
        statuses += fuzz(document, url, model, EXAMPLES, number)
        number += 1
        resident.append(gateway.memory_info().rss)
        print(f"{statuses.total()} requests, {number} rounds, gateway {resident[-1] >> 20} MiB", flush=True)
    for (label, status), times in sorted(statuses.items()):
        print(f"{label}: {status} {times} times")
    assert gateway.is_running()
    assert resident[-1] - resident[len(resident) // 10] < GROWTH_BYTES, resident
    assert requests.get(f"{url}/health", timeout=60).status_code == 200
