"""Charts as SVG, drawn with the colours of the page around them."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 520, 240
_LEFT, _TOP, _BOTTOM = 64, 28, 34
_TICKS = 4


class Series(NamedTuple):
    """Values of one kind, one for each group; its bars have the class `bar-NAME`."""

    name: str
    values: tuple[float, ...]


def grouped_bars(title: str, unit: str, groups: Sequence[str], series: Sequence[Series]) -> str:
    """Bars side by side.

    Args:
        title: above the chart, and its name for screen readers.
        unit: of the values.
        groups: labels below.
        series: one bar in each group for each.
    """
    top = max((value for each in series for value in each.values), default=0.0) or 1.0
    plot = _HEIGHT - _TOP - _BOTTOM
    wide = (_WIDTH - _LEFT - 8) / max(1, len(groups))
    bar = wide * 0.8 / max(1, len(series))
    parts = [
        f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-label="{escape(title)}">',
        f'<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>',
    ]
    for tick in range(_TICKS + 1):
        y = _TOP + plot * (1 - tick / _TICKS)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(top * tick / _TICKS)}</text>'
        )
    for at, group in enumerate(groups):
        left = _LEFT + wide * (at + 0.1)
        for number, each in enumerate(series):
            height = plot * each.values[at] / top
            parts.append(
                f'<rect class="bar-{escape(each.name)}" x="{left + bar * number:.1f}" y="{_TOP + plot - height:.1f}" '
                f'width="{max(1.0, bar - 2):.1f}" height="{height:.1f}"><title>{escape(group)}, {escape(each.name)}: '
                f"{_number(each.values[at])} {escape(unit)}</title></rect>"
            )
        middle = _LEFT + wide * (at + 0.5)
        parts.append(f'<text class="tick" x="{middle:.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{escape(group)}</text>')
    return "".join([*parts, "</svg>"])


def stacked_bar(parts: Sequence[tuple[str, float]], label: str) -> str:
    """One horizontal bar of shares that add up to at most 1, each with the class `part-NAME`."""
    drawn, left = [], 0.0
    for name, share in parts:
        drawn.append(f'<rect class="part-{escape(name)}" x="{100 * left:.2f}" y="0" width="{100 * share:.2f}" height="10"/>')
        left += share
    said = escape(f"{label}: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in parts))
    return (
        f'<svg class="stack" role="img" viewBox="0 0 100 10" preserveAspectRatio="none" aria-label="{said}">'
        f"<title>{said}</title>{''.join(drawn)}</svg>"
    )


def _number(value: float) -> str:
    for limit, factor, suffix in ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if value >= limit:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
