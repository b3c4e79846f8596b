"""A terminal for text that others have chosen, such as names of agents: it is printed as it is, and obeyed by nobody."""

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pbkv_cluster.cli.terminal.plain_text import plain

_FILE_COLUMNS = 200


class PlainConsole(Console):
    """Takes no text for markup or the name of an emoji, and escapes what a terminal would take for a command.

    A cell of a table that is too narrow goes on in the next line, and what is written to a file or a pipe has wider lines than
    a terminal.
    """

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _FILE_COLUMNS

    def render_str(self, text: str, **options: Any) -> Text:
        """Text of a string, also in the cells of tables, which are measured by it."""
        return super().render_str(plain(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of anything: what was built as a `Text` has not come through `render_str`."""
        if isinstance(renderable, Table):
            for column in renderable.columns:
                if not column.no_wrap:  # what goes on in no other line shows that it is cut
                    column.overflow = "fold"
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)
