"""`pbkv report`: what it says of traces that it knows the answer for."""

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow
from tests.cli.agent_traces import write_generated_trace
from tests.cli.conftest import Pbkv
from tests.simulator.simulated import lines_of

QUICK = ("--jobs", "1", "--gpu", ".3,1", "--host", "0")


def answer(pbkv: Pbkv, trace: Path, *options: str) -> dict[str, Any]:
    out = trace.with_suffix(".report")
    outcome = pbkv("report", str(trace), *QUICK, "--json", str(out), *options)
    assert outcome.code == 0, outcome.err
    report: dict[str, Any] = json.loads(out.read_text())
    for sentence in report["findings"]:
        assert sentence in outcome.out
    return report


def write(path: Path, prompts: Sequence[Sequence[Segment]], output: int = 8) -> Path:
    """Workflows of two steps, of which the second repeats nothing of the first but what `prompts` gives both."""
    workflows = [
        TraceWorkflow(f"w{number}", "app", tuple(TraceStep("a", tuple(prompt), f"o{number}/{at}", output) for at in range(2)))
        for number, prompt in enumerate(prompts)
    ]
    path.write_bytes(b"".join(lines_of(workflows)))
    return path


def test_says_what_is_saved_by_whom(pbkv: Pbkv, tmp_path: Path) -> None:
    trace = write_generated_trace(tmp_path / "t.jsonl", workflows=8, pauses=True)
    found = answer(pbkv, trace, "--concurrency", "4")
    could = found["potential"]
    agents = could["agents"]
    assert could["available_tokens"] == sum(each["own_tokens"] + each["other_tokens"] for each in agents)
    assert 0 < could["available_tokens"] < could["prompt_tokens"]
    assert 0 < could["saved_s"] < could["prefill_s"]
    for size in found["sizes"]:
        policies = size["policies"]
        assert policies["clairvoyant"]["recomputed_tokens"] <= policies["lru"]["recomputed_tokens"] <= could["available_tokens"]
        for each in policies.values():
            assert sum(site["tokens"] for site in each["recomputed_by_agent"]) == each["recomputed_tokens"]
    assert found["sizes"][0]["gpu_bytes"] == found["sizes"][0]["gpu_blocks"] * found["block_bytes"]
    assert found["sizes"][0]["policies"]["lru"]["recomputed_tokens"] > found["sizes"][1]["policies"]["lru"]["recomputed_tokens"]
    assert found["virtual_time"]


def test_says_so_where_prompts_share_nothing(pbkv: Pbkv, tmp_path: Path) -> None:
    workflows = [
        TraceWorkflow(
            f"w{number}",
            "app",
            tuple(
                TraceStep("a", (Segment(SegmentKind.TASK, f"t{number}/{at}", 200),), f"o{number}/{at}", 8) for at in range(2)
            ),
        )
        for number in range(6)
    ]
    trace = tmp_path / "t.jsonl"
    trace.write_bytes(b"".join(lines_of(workflows)))
    found = answer(pbkv, trace)
    assert found["verdict"] == "nothing"
    assert "no shared prefixes" in found["findings"][0]


def test_says_so_where_everything_is_kept_anyway(pbkv: Pbkv, tmp_path: Path) -> None:
    shared = Segment(SegmentKind.SYSTEM, "s", 160)
    trace = write(tmp_path / "t.jsonl", [(shared, Segment(SegmentKind.TASK, f"t{number}", 20)) for number in range(6)])
    found = answer(pbkv, trace, "--gpu", "2,3", "--concurrency", "2")
    assert found["verdict"] == "nothing"
    assert "it keeps" in found["findings"][0]


def test_says_so_where_nearly_all_time_goes_to_decoding(pbkv: Pbkv, tmp_path: Path) -> None:
    trace = write(tmp_path / "t.jsonl", [(Segment(SegmentKind.TASK, f"t{number}", 400),) for number in range(6)], output=2000)
    found = answer(pbkv, trace, "--gpu", ".1", "--concurrency", "3")
    assert found["verdict"] == "nothing"
    assert any("prefill is" in each for each in found["findings"])


def test_does_not_judge_what_it_does_not_know(pbkv: Pbkv, tmp_path: Path) -> None:
    trace = write(
        tmp_path / "t.jsonl", [(Segment(SegmentKind.HISTORY, f"t{number}", 400, pseudo=True),) for number in range(4)]
    )
    found = answer(pbkv, trace)
    assert found["verdict"] == "unknown"
    assert "lengths only" in found["findings"][0]


def test_takes_a_sample_and_says_so(pbkv: Pbkv, tmp_path: Path) -> None:
    trace = write_generated_trace(tmp_path / "t.jsonl", workflows=8, pauses=False)
    found = answer(pbkv, trace, "--workflows", "3", "--concurrency", "2")
    assert (found["workflows"], found["workflows_in_trace"]) == (3, 8)
    assert any("3 of 8 workflows" in each for each in found["assumptions"])
    assert any("logs no pauses" in each for each in found["assumptions"])


class Page(HTMLParser):
    """What a page loads, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.charts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.loads += [value for name in ("src", "href") if (value := named.get(name))]
        if tag == "svg":
            self.charts.append(named.get("aria-label") or "")
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone(pbkv: Pbkv, tmp_path: Path) -> None:
    trace = write_generated_trace(tmp_path / "<b>.jsonl", workflows=6, pauses=True)
    target = tmp_path / "report.html"
    found = answer(pbkv, trace, "--concurrency", "3", "--html", str(target))
    page = Page(target.read_text())
    assert page.open == []
    assert page.loads == []
    assert len(page.charts) == 1 + 3
    assert all(page.charts)
    assert "Does a KV cache pay for <b>?" in page.text
    for sentence in found["findings"]:
        assert sentence in page.text
    for each in found["potential"]["agents"]:
        assert each["agent"] in page.text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--gpu", "0"), "--gpu: must be above 0"),
        (("--host", "x"), "--host: must be numbers"),
        (("--machine", "abacus"), "machine"),
    ],
)
def test_wrong_options_are_named(pbkv: Pbkv, tmp_path: Path, options: tuple[str, ...], problem: str) -> None:
    trace = write_generated_trace(tmp_path / "t.jsonl", workflows=1, pauses=True)
    outcome = pbkv("report", str(trace), *options)
    assert outcome.code == 2
    assert problem in outcome.err


def test_processes_find_what_one_alone_finds(pbkv: Pbkv, tmp_path: Path) -> None:
    trace = write_generated_trace(tmp_path / "t.jsonl", workflows=4, pauses=True)
    alone = answer(pbkv, trace, "--concurrency", "2")
    assert answer(pbkv, trace, "--concurrency", "2", "--jobs", "2") == alone


def test_check_names_lines_and_fields(pbkv: Pbkv, tmp_path: Path) -> None:
    trace = write_generated_trace(tmp_path / "t.jsonl", workflows=2, pauses=True)
    assert pbkv("trace", "check", str(trace)).code == 0
    broken = [json.loads(line) for line in trace.read_text().splitlines()]
    broken[1]["agent"] = None
    broken[2]["output_tokens"] = "many"
    trace.write_text("".join(json.dumps(line) + "\n" for line in broken))
    outcome = pbkv("trace", "check", str(trace), "--json", str(tmp_path / "check.json"))
    assert outcome.code == 2
    assert "line 2: agent: " in outcome.out
    assert "line 3: output_tokens: " in outcome.out
    assert json.loads((tmp_path / "check.json").read_text())["problems"] == 2
    assert "1 more problem" in pbkv("trace", "check", str(trace), "--limit", "1").out
