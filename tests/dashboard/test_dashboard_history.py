"""Rows of history: their sums survive restarts, their ring is bounded, and charts and windows follow from them."""

import math
from pathlib import Path

import numpy as np
import pytest

from pbkv_cluster.core.blocks import Namespace
from pbkv_cluster.core.errors import StartupError
from pbkv_cluster.dashboard import series, summary
from pbkv_cluster.dashboard.columns import AT, BOUNDS, NAMES, RowMaker
from pbkv_cluster.dashboard.history import MIN_BYTES, ROW_BYTES, History
from pbkv_cluster.dashboard.history_file import HistoryFile
from pbkv_cluster.dashboard.scraping.metrics_text import Scrape, parse
from pbkv_cluster.store.cluster_index import WorkerEntry


def gateway(prompt: float, delivered: float, started: float = 1.0) -> dict[str, Scrape]:
    """The answer of a gateway with a worker that computes 100 tokens a second."""
    text = (
        f"process_start_time_seconds {started}\npbkv_prompt_tokens_total {prompt}\npbkv_prefill_tokens_per_second 100\n"
        f'pbkv_delivered_tokens_total{{tier="host"}} {delivered}\n'
    )
    return {"gateway": parse(text)}


def row(time: float, **values: float) -> np.ndarray:
    made = np.zeros(len(NAMES))
    made[0] = time
    for name, value in values.items():
        made[AT[name]] = value
    return made


def test_metrics_are_read_with_all_that_labels_may_hold() -> None:
    found = parse('# HELP x y\npbkv_a{workload="a\\"b\\\\c\\n,}",tier="gpu"} 2.5e+06\npbkv_b 1\nother 3\n')
    assert found.value("pbkv_a", workload='a"b\\c\n,}', tier="gpu") == 2.5e6
    assert found.by("pbkv_a", "tier") == {"gpu": 2.5e6}
    assert parse('pbkv_a{workload="a\u2028b\x0cc"} 1\n').value("pbkv_a", workload="a\u2028b\x0cc") == 1
    assert (found.value("pbkv_b"), found.value("pbkv_c"), found.has("other")) == (1, 0, False)


def test_sums_go_on_when_a_member_starts_again_or_is_away_for_a_round() -> None:
    maker = RowMaker()
    maker.start(0)
    maker.make(1, gateway(1000, 400))
    maker.make(2, {})
    last = maker.make(3, gateway(1500, 500))
    assert (last[AT["prompt"]], last[AT["delivered_host"]], last[AT["saved_s"]]) == (1500, 500, 5.0)
    last = maker.make(4, gateway(70, 30, started=9))
    assert (last[AT["prompt"]], last[AT["delivered_host"]]) == (1570, 530)
    assert RowMaker(last).make(5, gateway(10, 0))[AT["prompt"]] == 1580


def test_the_ring_keeps_the_latest_minutes_in_full_and_hours_in_steps_within_its_bytes() -> None:
    history = History(MIN_BYTES)
    for time in range(0, 200_000, 2):
        history.add(row(time, prompt=time))
    fine = history.since(200_000 - 600, 10_000)[:, 0]
    assert set(np.diff(fine)) == {2.0}
    everything = history.since(0, 10_000)[:, 0]
    assert len(everything) * ROW_BYTES <= MIN_BYTES
    assert everything[-1] == 199_998
    assert everything[0] <= 199_998 - 7 * 3600
    assert np.all(np.diff(everything) > 0)
    few = history.since(0, 50)[:, 0]
    assert (len(few), few[0], few[-1]) == (50, everything[0], everything[-1])


def test_a_window_starts_with_the_row_before_it_so_that_nothing_is_missed() -> None:
    history = History(MIN_BYTES)
    for time, prompt in ((0, 0), (10, 100), (20, 300)):
        history.add(row(time, prompt=prompt))
    assert series.window(history.since(15, 100))["prompt"] == 200
    assert series.window(history.since(5, 100))["prompt"] == 300


def test_charts_are_quotients_of_what_has_grown_and_empty_where_nothing_has() -> None:
    rows = np.stack([row(0), row(2, prompt=100, available=60, delivered_gpu=30, delivered_host=10), row(4, prompt=100)])
    rows[2, AT["available"]], rows[2, AT["delivered_gpu"]], rows[2, AT["delivered_host"]] = 60, 30, 10
    charts = series.charts(rows)
    assert charts["delivered"] == [0.4, None]
    assert charts["available"] == [0.6, None]
    assert charts["captured"] == [0, None]
    assert series.charts(rows[:1]) == {}


def test_percentiles_lie_in_their_bucket() -> None:
    counts = np.array([0] * 5 + [10] * (len(BOUNDS) - 5), dtype=float)  # ten between .1 and .25 s
    assert series.percentile(counts, 0.5) == pytest.approx(0.175)
    assert series.percentile(counts, 1.0) == pytest.approx(0.25)
    assert math.isnan(series.percentile(np.zeros(len(BOUNDS)), 0.5))
    assert series.percentile(np.array([0] * (len(BOUNDS) - 1) + [3], dtype=float), 0.5) == 100.0


def test_a_file_gives_its_rows_back_and_drops_the_oldest(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    file = HistoryFile(path, most_rows=3)
    for time in range(5):
        file.add(row(time, prompt=time))
    file.close()
    again = HistoryFile(path, most_rows=3)
    assert [(each[0], each[AT["prompt"]]) for each in again.rows()] == [(2, 2), (3, 3), (4, 4)]
    again.close()


def test_a_file_that_is_something_else_is_refused_by_the_name_of_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no database\n" * 100)
    with pytest.raises(StartupError, match=r"dashboard\.history_path"):
        HistoryFile(path, 3)
    assert path.read_text() == "no database\n" * 100


def test_what_was_brought_ahead_is_told_by_its_end_whatever_the_reason() -> None:
    entry = WorkerEntry("worker-0", "1", "node-0", "127.0.0.1:1", 1, Namespace("m", "1", "float32", "l"), 100, 100, 1, 1, 64)
    text = "".join(
        f'pbkv_staged_blocks_total{{reason="{reason}",outcome="{end}"}} {blocks}\n'
        for reason, blocks in (("forecast", 3), ("queue", 4))
        for end in ("loaded", "used")
    )
    shown = summary.worker(entry, parse(f'{text}pbkv_prefetched_blocks_total{{outcome="wasted"}} 5\n'), None)
    assert (shown["prefetch"], shown["staged"]) == ({"wasted": 5}, {"loaded": 7, "used": 7})
    assert summary.worker(entry, parse(""), None)["prefetch"] is None


def test_copies_over_the_bus_are_those_of_the_gpu_whatever_the_other_end() -> None:
    ways = (("host", "gpu"), ("sibling", "gpu"), ("disk", "gpu"), ("gpu", "host"), ("host", "disk"))
    text = "".join(f'pbkv_transfer_bytes_total{{source="{a}",target="{b}"}} 10\n' for a, b in ways)
    made = RowMaker().make(1, {"worker-0": parse(text)})
    assert (made[AT["loaded_bytes"]], made[AT["demoted_bytes"]]) == (30, 10)
