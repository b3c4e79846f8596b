"""A terminal for text that others have chosen, such as names of agents: it is printed as it is, and obeyed by nobody."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from pbkv_cluster.cli.plain_text import plain


class PlainConsole(Console):
    """Takes no text for markup or the name of an emoji, and escapes what a terminal would take for a command."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text of a string, also in the cells of tables, which are measured by it."""
        return super().render_str(plain(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of anything: what was built as a `Text` has not come through `render_str`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)
