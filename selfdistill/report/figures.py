"""Drawings as inline SVG: curves, bars, intervals and a lineage. Colours come from the page's style, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from ..io.display import plural, printable

WIDTH, HEIGHT = 640, 300


LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44


MOST = 200  # points of a curve that a page shows


DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")  # so that no line differs from another by its colour alone


LARGEST, CLOSEST = 1e150, 1e-9  # of the numbers that are drawn, and the share of it by which they must differ


FEW = 20  # rows of a bin that tell nothing of calibration


CHARACTER = 7.6  # width of a digit in text of 13 px, at most


@dataclass(frozen=True)
class Series:
    """A curve: its name, its points (x, y), whether they are marked, and whether a line joins them.

    ``apart`` gives it the style that is kept for controls.
    """

    name: str
    points: Sequence[tuple[float, float]]
    marked: bool = False
    lined: bool = True
    apart: bool = False


@dataclass(frozen=True)
class Mark:
    """A labelled vertical line: a decision of the audit."""

    x: float
    word: str
    good: bool


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    low, high = spread(low, high)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def spread(low: float, high: float) -> tuple[float, float]:
    """The ends of an interval, moved apart by a tenth of the value where a drawing could not tell them apart.

    >>> spread(0.7, 0.7000000000000001)[0] < 0.64, spread(0.0, 5e-324)
    (True, (-0.5, 0.5))
    """
    low, high = sorted(max(-LARGEST, min(LARGEST, value)) for value in (low, high))
    size = max(abs(low), abs(high))
    if size < 1 / LARGEST:
        return -0.5, 0.5
    margin = 0.0 if high - low > CLOSEST * size else 0.1 * size
    return low - margin, high + margin


def number(value: float) -> str:
    """A number in short form.

    >>> number(12000.0), number(0.25), number(3.0), number(0.00012)
    ('12k', '0.25', '3', '1.2e-04')
    """
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 1000:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.4g}"


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST` finite points at even distances, the last one included."""
    valid = [p for p in points if drawable(*p)]
    if len(valid) <= MOST:
        return valid
    return [valid[round(i * (len(valid) - 1) / (MOST - 1))] for i in range(MOST)]


def drawable(*values: float | None) -> bool:
    """Whether a figure has a place for all of these numbers."""
    return all(value is not None and abs(value) <= LARGEST for value in values)


def style(index: int) -> str:
    """The SVG attributes of the line with this index: 36 differ by colour and dashes; -1 is the style of controls."""
    if index < 0:
        return 'class="c apart"'
    dash = DASHES[(index + index // 6) % 6]
    return f'class="c c{index % 6}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _dot(index: int) -> str:
    """The class of the dots of a series: those of every second one are hollow, so that not the colour alone differs."""
    return "d apart" if index < 0 else f"d d{index % 6}" if index % 2 == 0 else f"c c{index % 6}"


@dataclass
class Plane:
    """Axes that map values to coordinates of a drawing.

    ``ends`` are the values at the ends of the x axis, by default its outer ticks; ``top`` is the upper end of the y
    axis in pixels.
    """

    xs: list[float]
    ys: list[float]
    x_label: str
    y_label: str
    width: int = WIDTH
    height: int = HEIGHT
    parts: list[str] = field(default_factory=list)
    ends: tuple[float, float] | None = None
    top: int = TOP

    def __post_init__(self) -> None:
        self.ends = self.ends or (self.xs[0], self.xs[-1])
        widest = max(len(number(t)) for t in self.ys)
        self.left = max(LEFT, round(26 + CHARACTER * widest))  # 20 for the label along the axis, 6 beside the figures

    def x(self, value: float) -> float:
        first, last = self.ends or (0.0, 1.0)
        return self.left + (value - first) / (last - first) * (self.width - self.left - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.ys[0]) / (self.ys[-1] - self.ys[0])
        return self.height - BOTTOM - share * (self.height - self.top - BOTTOM)

    def axes(self) -> None:
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for t in self.xs:
            self.parts.append(text(self.x(t), bottom + 16, number(t), "middle"))
        for t in self.ys:
            at = f"{self.y(t):.1f}"
            self.parts.append(f'<line class="grid" x1="{self.left}" x2="{right}" y1="{at}" y2="{at}"/>')
            self.parts.append(text(self.left - 6, self.y(t) + 4, number(t), "end"))
        self.parts.append(f'<line class="axis" x1="{self.left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        self.parts.append(text((self.left + right) / 2, self.height - 8, self.x_label, "middle"))
        middle = (self.top + bottom) / 2
        label = escape(self.y_label)
        self.parts.append(
            f'<text class="t" text-anchor="middle" transform="translate(13 {middle:.0f}) rotate(-90)">{label}</text>'
        )

    def path(self, points: Sequence[tuple[float, float]], index: int) -> None:
        drawn = thinned(points)
        line = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in drawn)
        self.parts.append(f'<polyline {style(index)} points="{line}"/>')

    def dots(self, points: Sequence[tuple[float, float]], index: int, radius: Sequence[float] = ()) -> None:
        for i, (a, b) in enumerate(thinned(points)):
            r = radius[i] if i < len(radius) else 3.5
            self.parts.append(f'<circle class="{_dot(index)}" cx="{self.x(a):.1f}" cy="{self.y(b):.1f}" r="{r:.1f}"/>')

    def drawn(self, title: str) -> str:
        return drawing(self.width, self.height, title, self.parts)


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "t") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def drawing(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """An SVG element with a title for screen readers."""
    label = escape(title, quote=True)
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}"><title>{label}</title>'
    return f"{head}{''.join(parts)}</svg>"


def legend(names: Sequence[str], dotted: Sequence[str] = (), styles: Sequence[int] = ()) -> str:
    """The legend of a figure as a list that wraps.

    The names in ``dotted`` have points and no line. ``styles`` are indices of line styles, by default 0, 1, ...
    """
    keys = []
    for i, name in zip(styles or range(len(names)), names, strict=True):
        line = f'<polyline {style(i)} points="0,4 28,4"/>'
        if name in dotted:
            line = f'<circle class="{_dot(i)}" cx="14" cy="4" r="3.5"/>'
        keys.append(f'<li><svg class="key" viewBox="0 0 28 8" aria-hidden="true">{line}</svg> {escape(name)}</li>')
    return f'<ul class="legend">{"".join(keys)}</ul>'


def curves(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    *,
    marks: Sequence[Mark] = (),
    height: int = HEIGHT,
    counts: bool = False,
    proportion: bool = False,
) -> str:
    """Curves in one drawing with a legend; empty without points.

    ``counts`` puts the ticks of x at integers; ``proportion`` keeps those of y between 0 and 1.
    """
    drawn = [line for line in series if thinned(line.points)]
    points = [p for line in drawn for p in thinned(line.points)]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    ends = spread(min(xs), max(xs))
    x_ticks = [x for x in ticks(*ends) if ends[0] <= x <= ends[1]]
    if counts:
        x_ticks = sorted({float(round(x)) for x in x_ticks} | {min(xs), max(xs)})
    low, high = spread(min(ys), max(ys))
    y_ticks = ticks(max(low, 0.0), min(high, 1.0), 4) if proportion else ticks(low, high, 4)
    plane = Plane(x_ticks, y_ticks, x_label, y_label, height=height, ends=ends)
    lines = _lines(marks, plane)
    plane.top += 14 * lines
    plane.axes()
    for i, mark in enumerate(marks):  # the words above the plane, where no curve is
        x, word, kind = plane.x(mark.x), TOP + 14 * (i % lines), "good" if mark.good else "bad"
        at = f"{x:.1f}"
        plane.parts.append(f'<line class="mark {kind}" x1="{at}" x2="{at}" y1="{word - 10}" y2="{height - BOTTOM}"/>')
        plane.parts.append(text(x - 3, word, mark.word, "end", f"t {kind}"))
    controls = [i for i, line in enumerate(drawn) if line.apart]
    styles = [-1 if i in controls else i - sum(a < i for a in controls) for i in range(len(drawn))]
    for i, line in zip(styles, drawn, strict=True):
        if line.lined:
            plane.path(line.points, i)
        if line.marked or not line.lined or len(thinned(line.points)) == 1:
            plane.dots(line.points, i)
    dotted = [line.name for line in drawn if not line.lined]
    return plane.drawn(title) + (legend([line.name for line in drawn], dotted, styles) if len(drawn) > 1 else "")


def _lines(marks: Sequence[Mark], plane: Plane) -> int:
    """The number of text lines that keep the labels of marks from overlapping."""
    places, width = (
        [plane.x(mark.x) for mark in marks],
        max((CHARACTER * len(mark.word) for mark in marks), default=0.0),
    )
    for lines in range(min(1, len(marks)), len(marks)):
        if all(b - a >= width for a, b in zip(places, places[lines:], strict=False)):
            return lines
    return len(marks)


def _square(marks: list[float], x_label: str, y_label: str) -> Plane:
    """Equal axes and their diagonal."""
    plane = Plane(marks, marks, x_label, y_label, width=420, height=360)
    plane.axes()
    low, high = marks[0], marks[-1]
    ends = f'x1="{plane.x(low):.0f}" y1="{plane.y(low):.0f}" x2="{plane.x(high):.0f}" y2="{plane.y(high):.0f}"'
    plane.parts.append(f'<line class="ideal" {ends}/>')
    return plane


def scatter(series: Sequence[tuple[str, Sequence[Sequence[float]]]], title: str) -> str:
    """A scatter plot of true values against predicted ones, with the diagonal."""
    values = [v for _, points in series for point in points for v in point if drawable(*point)]
    if not values:
        return ""
    plane = _square(ticks(min(values), max(values)), "predicted", "true")
    for i, (_, points) in enumerate(series):
        plane.dots([(point[0], point[1]) for point in points], i)
    names = [name for name, _ in series]
    return plane.drawn(title) + legend(names, names)


def reliability(series: Sequence[tuple[str, Sequence[dict[str, float]]]], rows: int) -> str:
    """Calibration as bars: for each bin of confidence the share that is right, a mark at the confidence, and the rows.

    Args:
        series: the bins of each model (`evaluation.metrics.reliability`), by its name.
        rows: how many rows were scored.
    """
    parts = []
    for name, measured in series:
        bins = [b for b in measured if drawable(b["confidence"], b["accuracy"], b["share"])]
        lines = []
        for one in bins:
            sure, right = (100 * min(1.0, max(0.0, one[key])) for key in ("confidence", "accuracy"))
            count, gap = max(1, round(one["share"] * rows)), right - sure
            word = "as sure as right" if abs(gap) < 2 else "too sure" if gap < 0 else "not sure enough"
            word = "too few rows to tell" if count < FEW else word
            text = f"{sure:.0f} % sure, {right:.0f} % right: {word}, {plural(count, 'row')}"
            drawn = (
                f'<div class="bar" style="width:{right:.1f}%"></div><span class="tick" style="left:{sure:.1f}%"></span>'
            )
            lines.append(f'<li>{escape(text)}<div class="track" aria-hidden="true">{drawn}</div></li>')
        if lines:
            parts.append(f'<h3>{escape(name)}</h3><ul class="bars">{"".join(lines)}</ul>')
    return "".join(parts)


def residuals(points: Sequence[Sequence[float]], title: str) -> str:
    """Errors (true minus predicted) by prediction, with a line at zero; empty without points."""
    pairs = [(p[0], p[1] - p[0]) for p in points if drawable(p[0], p[1], p[1] - p[0])]
    if not pairs:
        return ""
    xs, ys = zip(*pairs, strict=True)
    plane = Plane(ticks(min(xs), max(xs)), ticks(min(0.0, *ys), max(0.0, *ys)), "predicted", "true minus predicted")
    plane.axes()
    zero = f"{plane.y(0):.1f}"
    plane.parts.append(f'<line class="ideal" x1="{plane.left}" x2="{plane.width - RIGHT}" y1="{zero}" y2="{zero}"/>')
    for x, y in pairs:
        plane.parts.append(f'<circle class="d d0" cx="{plane.x(x):.1f}" cy="{plane.y(y):.1f}" r="3.5"/>')
    return plane.drawn(title)


def forest(rows: Sequence[tuple[str, float, float, float, str]], title: str, x_label: str) -> str:
    """A forest plot of differences with intervals: a row (name, low, mean, high, verdict) each, and a line at zero."""
    rows = [row for row in rows if drawable(row[2])]
    finite = [v for _, low, mean, high, _ in rows for v in (low, mean, high) if drawable(v)]
    if not finite:
        return ""
    step = 40
    height = TOP + step * len(rows) + BOTTOM
    plane = Plane(ticks(min(0.0, *finite), max(0.0, *finite)), [0, 1], x_label, "", height=height)
    zero = f"{plane.x(0):.1f}"
    parts = [f'<line class="ideal" x1="{zero}" x2="{zero}" y1="{TOP}" y2="{height - BOTTOM}"/>']
    parts += [text(plane.x(t), height - BOTTOM + 16, number(t), "middle") for t in plane.xs]
    parts.append(text(WIDTH / 2, height - 8, x_label, "middle"))
    for i, (name, low, mean, high, word) in enumerate(rows):
        y, kind = TOP + step * i + 28, {"BEATS": "good", "LOSES": "bad"}.get(word, "even")
        parts.append(text(LEFT, y - 12, f"{name}: {word}", "start", f"t {kind}"))
        left, right = (
            value if drawable(value) else end for value, end in zip((low, high), plane.ends or (), strict=True)
        )
        parts.append(
            f'<line class="span {kind}" x1="{plane.x(left):.1f}" x2="{plane.x(right):.1f}" y1="{y}" y2="{y}"/>'
        )
        parts.append(f'<circle class="{kind}" cx="{plane.x(mean):.1f}" cy="{y}" r="4.5"/>')
    return drawing(WIDTH, height, title, parts)


def bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    """Horizontal bars, each below its label: (name, length, text)."""
    longest = max((value for _, value, _ in rows if drawable(value)), default=0.0)
    if not longest > 0:
        return ""
    lines = []
    for name, value, words in rows:
        share = min(1.0, max(0.002, value / longest)) if drawable(value) else 0.0
        bar = f'<div class="bar" aria-hidden="true" style="width:{100 * share:.1f}%"></div>'
        lines.append(f"<li>{escape(f'{name}: {words}')}{bar}</li>")
    return f'<ul class="bars" aria-label="{escape(title, quote=True)}">{"".join(lines)}</ul>'


def lineage(nodes: Sequence[tuple[int, int | None, bool, str]], title: str) -> str:
    """Generations as boxes with an arrow from teacher to student: (number, teacher, accepted, text)."""
    step, box, gap = 150, 118, 70
    width, height = max(320, step * len(nodes) + 10), 150
    parts = [
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    ]
    place = {number: 6 + step * i for i, (number, _, _, _) in enumerate(nodes)}
    for number_, teacher, accepted, words in nodes:
        x, kind = place[number_], "good" if accepted else "bad"
        parts.append(f'<rect class="box {kind}" x="{x}" y="{gap}" width="{box}" height="52" rx="6"/>')
        parts.append(text(x + box / 2, gap + 21, f"generation {number_}", "middle"))
        parts.append(text(x + box / 2, gap + 39, words, "middle", f"t {kind}"))
        if teacher is not None:
            a, b = place[teacher] + box / 2, x + box / 2
            rise = gap - 14 - 12 * min(4, number_ - teacher)
            parts.append(
                f'<path class="arrow" d="M{a} {gap}C{a} {rise} {b} {rise} {b} {gap - 2}" marker-end="url(#tip)"/>'
            )
    return drawing(width, height, title, parts).replace("<svg ", f'<svg style="max-width:{width}px" ', 1)


def standalone(svg: str) -> str:
    """A drawing as a file of its own, with the style of the page; empty without a drawing."""
    if not svg:
        return ""
    from .layout import STYLE

    head = '<svg xmlns="http://www.w3.org/2000/svg" style="background:var(--bg);font-family:sans-serif" '
    return printable(svg).replace("<svg ", head, 1).replace("<title>", f"<style>{STYLE}</style><title>", 1) + "\n"
