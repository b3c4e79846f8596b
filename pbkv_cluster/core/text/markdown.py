"""Pages in Markdown that are written from code: docs/commands.md, docs/configuration.md, docs/metrics.md."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, with a line's end after each row. A bar in a cell is escaped, since it would end the cell, also inside code."""
    lines = [_row(headings), "|---" * len(headings) + "|\n", *map(_row, rows)]
    return "".join(lines)


def code(text: str) -> str:
    """Text as code; empty stays empty."""
    return f"`{text}`" if text else ""


def write_page(text: str) -> None:
    """Writes a page to the file that the command line names, or to standard output."""
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)
    else:
        sys.stdout.write(text)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
