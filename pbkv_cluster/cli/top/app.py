"""The screen of `pbkv top`."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Static

from pbkv_cluster.cli.terminal.plain_text import plain
from pbkv_cluster.cli.top.reader import Reader, Snapshot
from pbkv_cluster.cli.top.rows import ORDERS, WORKER_COLUMNS, WORKFLOW_COLUMNS, head_lines, worker_rows, workflow_rows
from pbkv_cluster.core.errors import PbkvError


class TopApp(App[None]):
    """Looks at a cluster once an interval. While it does not answer, the last moment stays on the screen, and says so."""

    CSS = """
    #state { height: 1; }
    #state.lost { background: $error; }
    #head { height: auto; margin-bottom: 1; }
    #workers { height: auto; max-height: 40%; }
    #workflows { height: 1fr; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("s", "sort", "sort workflows"),
        Binding("p,space", "pause", "pause"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, endpoint: str, interval_s: float) -> None:
        """Args:
        endpoint: of the gateway.
        interval_s: seconds from the end of one look to the next.

        Raises:
            InvalidArgument: `endpoint` is no host:port.
        """
        super().__init__()
        self._endpoint = endpoint
        self._interval_s = interval_s
        self.snapshot: Snapshot | None = None
        self.problem = ""  # why the last look failed; empty: it did not
        self.paused = False
        self.order = ORDERS[0]
        self._seen_at = 0.0
        self._woken = asyncio.Event()

    def compose(self) -> ComposeResult:
        yield Static(id="state")
        yield Static(id="head")
        yield DataTable(id="workers", cursor_type="none", show_cursor=False)
        yield DataTable(id="workflows", cursor_type="row")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#workers", DataTable).add_columns(*WORKER_COLUMNS)
        self.query_one("#workflows", DataTable).add_columns(*WORKFLOW_COLUMNS)
        self._show()
        self.run_worker(self._look(), name="reader", exit_on_error=True)

    def action_sort(self) -> None:
        """The next order of workflows."""
        self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
        self._show()

    def action_pause(self) -> None:
        """Stops looking, or goes on."""
        self.paused = not self.paused
        self._woken.set()
        self._show()

    async def _look(self) -> None:
        async with Reader(self._endpoint) as reader:
            while True:
                if not self.paused:
                    try:
                        snapshot = await reader.read()
                    except PbkvError as error:
                        self.problem = str(error)
                    else:
                        if not self.paused:
                            self.snapshot, self.problem, self._seen_at = snapshot, "", time.time()
                    self._show()
                self._woken.clear()
                try:
                    async with asyncio.timeout(None if self.paused else self._interval_s):
                        await self._woken.wait()
                except TimeoutError:
                    continue

    def _show(self) -> None:
        state = self.query_one("#state", Static)
        state.update(Text(plain(self._state()), overflow="ellipsis", no_wrap=True))
        state.set_class(bool(self.problem), "lost")
        if self.snapshot is not None:
            self.query_one("#head", Static).update(Text(plain("\n".join(head_lines(self.snapshot)))))
            _fill(self.query_one("#workers", DataTable), worker_rows(self.snapshot))
            _fill(self.query_one("#workflows", DataTable), workflow_rows(self.snapshot, self.order))

    def _state(self) -> str:
        seen = f", as of {time.strftime('%H:%M:%S', time.localtime(self._seen_at))}" if self.snapshot is not None else ""
        if self.paused:
            return f"{self._endpoint}: paused{seen}"
        if self.problem:
            return f"{self._endpoint} does not answer, trying again{seen}: {self.problem}"
        return f"{self._endpoint}{seen}; workflows by {self.order}" if seen else f"{self._endpoint}: asking"


def _fill(table: "DataTable[Text]", rows: Iterable[Sequence[str]]) -> None:
    """Replaces the rows of a table; the cursor and the view stay where they are."""
    row, top = table.cursor_row, table.scroll_y
    table.clear()
    for each in rows:
        table.add_row(*(Text(plain(cell)) for cell in each))  # as text only: names are chosen by clients
    table.move_cursor(row=row, animate=False, scroll=False)
    table.scroll_to(y=top, animate=False)
