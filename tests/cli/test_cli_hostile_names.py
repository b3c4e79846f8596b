"""Names that clients choose are printed as they are: no markup, no emoji, nothing that a terminal obeys."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from pbkv_cluster.cli.terminal.console import PlainConsole
from pbkv_cluster.cli.terminal.output import figures_table
from pbkv_cluster.cli.terminal.plain_text import plain
from pbkv_cluster.rpc.v1.types_pb2 import Prompt
from pbkv_cluster.simulator.traces.step_traces import Segment, SegmentKind, TraceStep, TraceWorkflow
from tests.cli.conftest import LoopThread, Pbkv
from tests.gateway.peers import ScriptedWorker
from tests.gateway.rig import Rig, running
from tests.simulator.simulated import lines_of

NAMES = ("[/x]", "[planner]", ":smile:", "\x1b]0;own\x1b\\")
SHOWN = ("[/x]", "[planner]", ":smile:", "\\x1b]0;own\\x1b\\")


@pytest.fixture
def busy(loop_thread: LoopThread) -> Iterator[str]:
    """Address of a gateway whose open workflows, workloads, agents and call sites have hostile names."""
    gateway = AsyncExitStack()

    async def start() -> Rig:
        rig = await gateway.enter_async_context(running(ScriptedWorker("w1")))
        for name in NAMES:
            await rig.start_workflow(workflow_id=name, workload=name)
            await rig.run(name, agent_id=name, call_site=name, prompt=Prompt(text="a prompt of its own"))
        return rig

    yield loop_thread.run(start()).address
    loop_thread.run(gateway.aclose())


@pytest.mark.parametrize("command", [("workflows", "ls"), ("agents", "ls")])
def test_a_cluster_s_names_are_shown(pbkv: Pbkv, busy: str, command: tuple[str, ...]) -> None:
    done = pbkv(*command, "--endpoint", busy)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    for shown in SHOWN:
        assert shown in done.out


def test_a_table_loses_nothing_where_it_is_narrow_or_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["/a/long/path/to/a/file", "a-long-name-of-an-agent", "another-name-as-long"]
    for columns in (30, None):
        if columns is None:
            monkeypatch.delenv("COLUMNS")
        else:
            monkeypatch.setenv("COLUMNS", str(columns))
        table = Table("path", "agent", "other")
        table.add_row(*names)
        PlainConsole().print(table)
        shown = capsys.readouterr().out
        assert "…" not in shown
        assert all(name in shown for name in names) == (columns is None)


def test_neither_names_nor_large_figures_are_lost_where_a_table_is_narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    names, figures = (
        ("planner-of-journeys", "prompts/plan.j2", "support"),
        [f"{number}23,456,789,012" for number in range(1, 7)],
    )
    table = figures_table(("agent", "call site", "workload"), ("steps", "prompt", "reusable", "reused", "recomputed", "part"))
    table.add_row(*names, *figures)
    PlainConsole().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    rows = lines[1 + next(at for at, line in enumerate(lines) if "──" in line) : -1]
    assert Counter("".join(rows).replace(" ", "")) == Counter("".join((*names, *figures)))


def test_a_name_in_an_error_is_shown(pbkv: Pbkv, busy: str) -> None:
    done = pbkv("workflows", "show", "\x1b[2J", "--endpoint", busy)
    assert done.code == 1
    assert r"\x1b[2J" in done.err


def test_a_trace_s_names_are_shown_and_its_files_written(pbkv: Pbkv, tmp_path: Path) -> None:
    trace, page = tmp_path / "[b].jsonl", tmp_path / "report.html"
    prompt = (Segment(SegmentKind.TASK, "t", 200),)
    workflows = [
        TraceWorkflow(str(number), name, (TraceStep(name, prompt, f"o{number}", 8),)) for number, name in enumerate(NAMES)
    ]
    trace.write_bytes(b"".join(lines_of(workflows)))
    done = pbkv("report", str(trace), "--jobs", "1", "--gpu", "1", "--host", "0", "--html", str(page))
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    for shown in ("[b]: ", *SHOWN):
        assert shown in done.out
    assert page.is_file()


@pytest.mark.parametrize(("name", "shown"), list(zip(NAMES, SHOWN, strict=True)))
def test_every_way_to_print_shows_a_name(capsys: pytest.CaptureFixture[str], name: str, shown: str) -> None:
    table = Table(name, title=name)
    table.add_row(name)
    table.add_row(Text(name))
    console = PlainConsole()
    for each in (name, Text(name, style="bold"), table):
        console.print(each)
    out = capsys.readouterr().out
    assert out.count(shown) == 6
    assert "\x1b" not in out


def test_lines_and_letters_are_left_as_they_are() -> None:
    assert plain("Zürich\n\t東京") == "Zürich\n\t東京"
    assert plain("\u202eevil\ud800") == r"\u202eevil\ud800"
