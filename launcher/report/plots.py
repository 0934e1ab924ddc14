"""Plots as SVG whose colours are the page's, so that they follow light and dark without a script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from launcher.report.markup import COLOURS

_WIDTH, _HEIGHT = 320, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 40
_TICKS = 5


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Axes and what they span."""

    x: tuple[float, float]
    """Lowest and highest value."""
    y: tuple[float, float]
    """Lowest and highest value."""
    x_label: str
    y_label: str

    def at(self, x: float, y: float) -> tuple[str, str]:
        """A place in the drawing."""
        right, high = _share(x, self.x), _share(y, self.y)
        across = _LEFT + right * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (1 - high) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f}", f"{down:.1f}"

    def figure(self, title: str, marks: str, summary: str, below: str = "") -> str:
        """The plot with its heading.

        Args:
            title: What it shows.
            marks: SVG.
            summary: The same in words, for who cannot see it.
            below: HTML: a legend or a note.
        """
        opening = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(summary)}">'
        return plot(title, f"{opening}{self._axes()}{marks}</svg>{below}")

    def line(self, x: Sequence[float], y: Sequence[float], style: str, title: str = "") -> str:
        """A curve; with a title it says what it is under the pointer."""
        places = " ".join(",".join(self.at(*pair)) for pair in zip(x, y, strict=True))
        told = f"<title>{escape(title)}</title>" if title else ""
        return f'<polyline class="line {style}" points="{places}">{told}</polyline>'

    def dot(self, x: float, y: float, radius: float, title: str = "") -> str:
        """A point."""
        across, down = self.at(x, y)
        told = f"<title>{escape(title)}</title>" if title else ""
        return f'<circle cx="{across}" cy="{down}" r="{radius:.1f}">{told}</circle>'

    def bar(self, begin: float, end: float, height: float, title: str) -> str:
        """A column on the x axis."""
        (left, top), (right, bottom) = self.at(begin, height), self.at(end, self.y[0])
        width, tall = float(right) - float(left), float(bottom) - float(top)
        return (
            f'<rect class="bar" x="{left}" y="{top}" width="{max(0.5, width - 1):.1f}" height="{tall:.1f}">'
            f"<title>{escape(title)}</title></rect>"
        )

    def _axes(self) -> str:
        parts = []
        for value in ticks(*self.x):
            across, down = self.at(value, self.y[0])
            parts.append(f'<text x="{across}" y="{float(down) + 15:.1f}" text-anchor="middle">{_figure(value)}</text>')
        for value in ticks(*self.y):
            across, down = self.at(self.x[0], value)
            parts.append(f'<path class="grid" d="M{across} {down}H{_WIDTH - _RIGHT}"/>')
            place = f'x="{float(across) - 6:.1f}" y="{float(down) + 3.5:.1f}"'
            parts.append(f'<text {place} text-anchor="end">{_figure(value)}</text>')
        middle, height = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
        parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(self.x_label)}</text>')
        parts.append(
            f'<text transform="translate(11 {height}) rotate(-90)" text-anchor="middle">{escape(self.y_label)}</text>'
        )
        return "".join(parts)


def plot(title: str, body: str, style: str = "") -> str:
    """A drawing under its heading."""
    return f'<figure class="plot {style}"><h4>{escape(title)}</h4>{body}</figure>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """What the curves are: a name and a figure of each, in the order of their colours."""
    items = "".join(
        f'<li><i class="swatch {colour(place)}" aria-hidden="true"></i>{escape(name)} <b>{escape(figure)}</b></li>'
        for place, (name, figure) in enumerate(entries)
    )
    return f'<ul class="legend">{items}</ul>'


def colour(place: int) -> str:
    """The classes of the curve at a place: further ones take the colours again, dashed."""
    return f"run-{place % COLOURS}{' dashed' if place >= COLOURS else ''}"


def heat(names: Sequence[str], counts: Sequence[Sequence[int]], numbers_up_to: int = 12) -> str:
    """A matrix whose cells are the darker, the larger their share of the row.

    Args:
        names: Of rows and columns.
        counts: Rows are what is true, columns what was said.
        numbers_up_to: So many names leave room for figures in the cells.
    """
    small = "" if len(names) <= numbers_up_to else " small"
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    body = []
    for name, row in zip(names, counts, strict=True):
        total = sum(row)
        cells = "".join(_cell(name, said, count, total, bool(small)) for said, count in zip(names, row, strict=True))
        body.append(f'<tr><th scope="row"><span>{escape(name)}</span></th>{cells}</tr>')
    return (
        f'<div class="matrix{small}" tabindex="0" role="group" aria-label="Confusion matrix"><table>'
        f'<thead><tr><td class="corner-words">true ↓ said →</td>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(name: str, said: str, count: int, total: int, is_small: bool) -> str:
    share = count / total if total else 0.0
    words = f"{name} taken for {said}" if name != said else f"{name} recognised"
    title = escape(f"{words}: {count:,} of {total:,}")
    style = ' class="full"' if share > 0.5 else ""
    text = "" if is_small or not count else f"{count:,}"
    return f'<td{style} style="--share: {100 * share:.1f}%" title="{title}">{text}</td>'


def ticks(low: float, high: float) -> list[float]:
    """Round values from low to high, about five."""
    size = 10 ** math.floor(math.log10((high - low) / _TICKS))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (size * factor) <= _TICKS + 0.5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def padded(values: Sequence[float]) -> tuple[float, float]:
    """A range with some air around the values, which may be all the same."""
    low, high = min(values), max(values)
    air = (high - low) * 0.05 or max(abs(high) * 0.05, 0.5)
    return low - air, high + air


def _share(value: float, span: tuple[float, float]) -> float:
    return (value - span[0]) / (span[1] - span[0])


def _figure(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if value else "0"
