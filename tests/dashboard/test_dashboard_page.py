"""The page in real headless Chromium, on a real cluster: figures, hostile names, restarts of the server, keyboard."""

from collections.abc import Iterator
from typing import Any

import pytest

from pbkv_cluster.client import Client
from tests.dashboard.small_cluster import SmallCluster, run_workflows, tokens
from tests.polling import wait_for

pytest.importorskip("playwright", reason="make test-dashboard installs it")
from tests.dashboard.browser import browser, find

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find() is None, reason="there is no Chromium; make test-dashboard fetches it"),
]

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
_TIMEOUT_MS = 60_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture
def page(chromium: Any, cluster: SmallCluster) -> Iterator[Any]:
    """Fails a test whose page reports an error, except that the server was away."""
    opened = chromium.new_page()
    opened.set_default_timeout(_TIMEOUT_MS)
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(cluster.url)
    opened.wait_for_selector("#connection[data-state='live']")
    yield opened
    opened.close()
    assert [text for text in said if "net::ERR_" not in text] == []


def figure(page: Any, name: str) -> str:
    return str(page.text_content(f"[data-figure='{name}']"))


def test_the_figures_on_the_page_are_those_of_status(page: Any, cluster: SmallCluster) -> None:
    run_workflows(cluster.gateway_address, 2)
    with Client(cluster.gateway_address) as client:
        status = client.status()
    totals = status.totals
    wait_for(lambda: figure(page, "prompt") == f"{totals.prompt_tokens:,}")
    assert figure(page, "available") == f"{totals.available_tokens:,}"
    assert figure(page, "delivered") == f"{sum(tier.tokens for tier in totals.delivered):,}"
    gpu = status.workers[0].store.tiers[0]
    assert figure(page, "worker-0-gpu") == f"{100 * gpu.used_blocks / gpu.capacity_blocks:.1f} %"
    delivered = sum(tier.tokens for tier in totals.delivered) / totals.prompt_tokens
    wait_for(lambda: str(page.text_content("#verdict .tile dd")).startswith(f"{100 * delivered:.1f} %"))
    memory = page.text_content("#memory")
    assert all(f"worker-0, {tier}: " in memory for tier in ("GPU", "host", "disk"))
    assert "shared by open workflows" in memory
    assert page.text_content("#prefetch") == "No block has been brought ahead yet."  # the GPU has room for all that has run
    page.wait_for_selector("[data-chart='hits'] canvas")
    assert "delivered" in page.get_attribute("[data-chart='hits']", "aria-label")
    assert "[object" not in page.inner_text("main")


def test_names_of_clients_are_text_and_a_workflow_opens_by_keyboard(page: Any, cluster: SmallCluster) -> None:
    with Client(cluster.gateway_address) as client, client.start_workflow(HOSTILE, workload=HOSTILE) as workflow:
        workflow.run(agent=HOSTILE, prompt=tokens(64, 9), max_tokens=2)
        page.wait_for_selector("#workflows button")
        assert page.text_content("#workflows button") == HOSTILE
        page.focus("#workflows button")
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog[open] table")
        assert page.text_content("#detail-title") == HOSTILE
        page.click("dialog [aria-label='Cached runs of blocks'] button")
        page.wait_for_selector("#detail-block [aria-label='Where the block lies']")
        assert "computed by a step" in page.text_content("#detail-block")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
    assert page.query_selector("main img, main script") is None
    assert "hacked" not in page.title()


def test_it_says_that_the_server_is_away_and_comes_back_by_itself(page: Any, cluster: SmallCluster) -> None:
    cluster.stop("dashboard")
    page.wait_for_selector("#connection[data-state='lost']")
    assert "trying again" in page.text_content("#connection")
    cluster.start("dashboard")
    page.wait_for_selector("#connection[data-state='live']")


def test_a_member_that_ends_is_told_in_words(page: Any, cluster: SmallCluster) -> None:
    cluster.announce("predictor", False, 0, "it was killed by signal 9")
    page.wait_for_selector("text=predictor has ended: it was killed by signal 9")
    cluster.announce("predictor", True, 1, "it was killed by signal 9")
    page.wait_for_selector("text=predictor serves again")
