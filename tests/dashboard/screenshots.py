"""Makes the pictures of docs/dashboard.md: `python -m tests.dashboard.screenshots --out docs`; all of them with `--all`."""

import argparse
import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser

from pbkv_cluster.client import Client
from tests.dashboard.browser import browser
from tests.dashboard.small_cluster import SmallCluster, run_workflows, tokens

_WORKFLOWS = 40
_OPEN = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--all", action="store_true", help="also in the dark and on a phone, the whole page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _cluster(Path(folder)) as cluster, browser() as running:
        started = threading.Event()
        working = threading.Thread(target=_work, args=(cluster.gateway_address, started.set), daemon=True)
        working.start()
        started.wait()
        _take(running, cluster.url, options.out / "dashboard.png", "light", 1280, 1000, whole=False)
        if options.all:
            _take(running, cluster.url, options.out / "light.png", "light", 1280, 1000, whole=True)
            _take(running, cluster.url, options.out / "dark.png", "dark", 1280, 1000, whole=True)
            _take(running, cluster.url, options.out / "phone.png", "dark", 390, 844, whole=True)


def _cluster(folder: Path) -> SmallCluster:
    """With less memory than its workflows would like to have."""
    model = folder / "demo-model"
    model.mkdir()
    return SmallCluster(model, cluster__name="demo", engine__gpu_blocks=48, engine__host_blocks=40)


def _work(address: str, ready: Callable[[], None]) -> None:
    """Two workloads that have ended, and some workflows that stay open."""
    chosen = random.Random(1)
    for number in range(_WORKFLOWS):
        run_workflows(address, 1, seed=1000 * chosen.randrange(7))
        run_workflows(address, 1, seed=50_000 + 1000 * number, workload="research")
    with Client(address) as client:
        for number in range(_OPEN):
            flow = client.start_workflow(f"ticket-{4711 + number}", workload="review")
            context = tokens(96, 0)
            for step, agent in enumerate(("planner", "coder", "reviewer")[: 1 + number % 3]):
                context += tokens(24, 7 + number + step)
                flow.run(agent=agent, call_site="main", prompt=context, max_tokens=4, ignore_eos=True)
        ready()


def _take(running: Browser, url: str, path: Path, scheme: str, width: int, height: int, whole: bool) -> None:
    page = running.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light")
    page.goto(url)
    page.check("input[value='900']", force=True)
    page.wait_for_selector("#verdict .tiles")
    page.wait_for_selector("#workflows table")
    page.wait_for_selector("[data-chart='hits'] canvas")
    page.screenshot(path=path, full_page=whole)
    page.close()


if __name__ == "__main__":
    main()
