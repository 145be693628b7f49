"""Drawings as inline SVG: curves, bars, intervals and a lineage. Colours come from the page's style, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 640, 300


LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44


MOST = 200  # points of a curve that a page shows


DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")  # so that no line is told by its colour alone


CHARACTER = 7.6  # width of a digit in text of 13 px, at most


@dataclass(frozen=True)
class Series:
    """A curve: points (x, y), a name, whether its points are marked, and whether a line joins them. One that stands
    ``apart``, as a control does, is drawn as no other one is."""

    name: str
    points: Sequence[tuple[float, float]]
    marked: bool = False
    lined: bool = True
    apart: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line with a word: a decision of the audit."""

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
    return [round(i * step, 12) for i in range(first, last + 1)]


def spread(low: float, high: float) -> tuple[float, float]:
    """The same ends; of a single value a tenth of it to either side."""
    wide = 0.0 if high > low else 0.1 * abs(low) or 0.5
    return low - wide, high + wide


def number(value: float) -> str:
    """A number as a person writes it.

    >>> number(12000.0), number(0.25), number(3.0), number(0.00012)
    ('12k', '0.25', '3', '1.2e-04')
    """
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 1000:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.4g}"


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST` points, evenly taken, the last among them; what is not a number is left out."""
    finite = [p for p in points if all(map(math.isfinite, p))]
    if len(finite) <= MOST:
        return finite
    return [finite[round(i * (len(finite) - 1) / (MOST - 1))] for i in range(MOST)]


def style(index: int) -> str:
    """Attributes of the line of this number: 36 are told apart by colour and dashes; -1 stands apart from all."""
    if index < 0:
        return 'class="c apart"'
    dash = DASHES[(index + index // 6) % 6]
    return f'class="c c{index % 6}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _dot(index: int) -> str:
    return "d apart" if index < 0 else f"d d{index % 6}"


@dataclass
class Plane:
    """Axes: from figures to places on the drawing. The x axis ends where ``ends`` say, else with its figures; ``top``
    is where the y axis does."""

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
        shown = thinned(points)
        line = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in shown)
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
    """An SVG element with a title for those who do not see it."""
    said = escape(title, quote=True)
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}"><title>{said}</title>'
    return f"{head}{''.join(parts)}</svg>"


def legend(names: Sequence[str], dotted: Sequence[str] = (), styles: Sequence[int] = ()) -> str:
    """Which line is whose, as text that wraps; the names in ``dotted`` have points and no line. ``styles`` are numbers
    of lines, the place of a name by default."""
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
    whole: bool = False,
    share: bool = False,
) -> str:
    """Curves over one another with a legend; empty where there is nothing to draw. ``whole``: x counts something;
    ``share``: y lies between 0 and 1."""
    shown = [one for one in series if thinned(one.points)]
    points = [p for one in shown for p in thinned(one.points)]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    ends = spread(min(xs), max(xs))
    across = [x for x in ticks(*ends) if ends[0] <= x <= ends[1]]
    if whole:
        across = sorted({float(round(x)) for x in across} | {min(xs), max(xs)})
    low, high = spread(min(ys), max(ys))
    up = ticks(max(low, 0.0), min(high, 1.0), 4) if share else ticks(low, high, 4)
    plane = Plane(across, up, x_label, y_label, height=height, ends=ends)
    lines = _lines(marks, plane)
    plane.top += 14 * lines
    plane.axes()
    for i, mark in enumerate(marks):  # the words above the plane, where no curve is
        x, word, kind = plane.x(mark.x), TOP + 14 * (i % lines), "good" if mark.good else "bad"
        at = f"{x:.1f}"
        plane.parts.append(f'<line class="mark {kind}" x1="{at}" x2="{at}" y1="{word - 10}" y2="{height - BOTTOM}"/>')
        plane.parts.append(text(x - 3, word, mark.word, "end", f"t {kind}"))
    apart = [i for i, one in enumerate(shown) if one.apart]
    styles = [-1 if i in apart else i - sum(a < i for a in apart) for i in range(len(shown))]
    for i, one in zip(styles, shown, strict=True):
        if one.lined:
            plane.path(one.points, i)
        if one.marked or not one.lined or len(thinned(one.points)) == 1:
            plane.dots(one.points, i)
    dotted = [one.name for one in shown if not one.lined]
    return plane.drawn(title) + (legend([one.name for one in shown], dotted, styles) if len(shown) > 1 else "")


def _lines(marks: Sequence[Mark], plane: Plane) -> int:
    """Lines of text that the words of marks need, so that none is written over another."""
    places, wide = [plane.x(mark.x) for mark in marks], max((CHARACTER * len(mark.word) for mark in marks), default=0.0)
    for lines in range(min(1, len(marks)), len(marks)):
        if all(b - a >= wide for a, b in zip(places, places[lines:], strict=False)):
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
    """True values against predicted ones; on the diagonal they are equal."""
    values = [v for _, points in series for point in points for v in point]
    plane = _square(ticks(min(values), max(values)), "predicted", "true")
    for i, (_, points) in enumerate(series):
        plane.dots([(point[0], point[1]) for point in points], i)
    names = [name for name, _ in series]
    return plane.drawn(title) + legend(names, names)


def reliability(series: Sequence[tuple[str, Sequence[dict[str, float]]]], title: str) -> str:
    """Accuracy against confidence; the diagonal is perfect calibration, a dot's size the share of rows."""
    plane = _square(ticks(0, 1), "confidence", "accuracy")
    for i, (_, bins) in enumerate(series):
        points = [(b["confidence"], b["accuracy"]) for b in bins]
        plane.path(points, i)
        plane.dots(points, i, [2 + 8 * math.sqrt(b["share"]) for b in bins])
    return plane.drawn(title) + legend([name for name, _ in series])


def forest(rows: Sequence[tuple[str, float, float, float, str]], title: str, x_label: str) -> str:
    """Differences with intervals, one line each: (name, low, mean, high, word); zero is drawn."""
    finite = [v for _, low, mean, high, _ in rows for v in (low, mean, high) if math.isfinite(v)]
    if not finite:
        return ""
    each = 40
    height = TOP + each * len(rows) + BOTTOM
    plane = Plane(ticks(min(0.0, *finite), max(0.0, *finite)), [0, 1], x_label, "", height=height)
    zero = f"{plane.x(0):.1f}"
    parts = [f'<line class="ideal" x1="{zero}" x2="{zero}" y1="{TOP}" y2="{height - BOTTOM}"/>']
    parts += [text(plane.x(t), height - BOTTOM + 16, number(t), "middle") for t in plane.xs]
    parts.append(text(WIDTH / 2, height - 8, x_label, "middle"))
    for i, (name, low, mean, high, word) in enumerate(rows):
        y, kind = TOP + each * i + 28, {"BEATS": "good", "LOSES": "bad"}.get(word, "even")
        parts.append(text(LEFT, y - 12, f"{name}: {word}", "start", f"t {kind}"))
        parts.append(f'<line class="span {kind}" x1="{plane.x(low):.1f}" x2="{plane.x(high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{kind}" cx="{plane.x(mean):.1f}" cy="{y}" r="4.5"/>')
    return drawing(WIDTH, height, title, parts)


def bars(rows: Sequence[tuple[str, float, str]], title: str) -> str:
    """Horizontal bars below their words, which wrap: (name, length, words)."""
    most = max((value for _, value, _ in rows), default=0.0)
    if not most > 0:
        return ""
    lines = []
    for name, value, words in rows:
        bar = f'<div class="bar" style="width:{max(0.2, 100 * value / most):.1f}%"></div>'
        lines.append(f"<li>{escape(f'{name}: {words}')}{bar}</li>")
    return f'<ul class="bars" aria-label="{escape(title, quote=True)}">{"".join(lines)}</ul>'


def lineage(nodes: Sequence[tuple[int, int | None, bool, str]], title: str) -> str:
    """Generations as boxes, an arrow from each teacher to whom it taught: (number, teacher, accepted, words)."""
    each, box, gap = 150, 118, 70
    width, height = max(320, each * len(nodes) + 10), 150
    parts = [
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    ]
    place = {number: 6 + each * i for i, (number, _, _, _) in enumerate(nodes)}
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


def standalone(drawn: str) -> str:
    """The same drawing as a file of its own, with the style that a page would give it; empty without a drawing."""
    if not drawn:
        return ""
    from .layout import STYLE

    head = '<svg xmlns="http://www.w3.org/2000/svg" style="background:var(--bg);font-family:sans-serif" '
    return drawn.replace("<svg ", head, 1).replace("<title>", f"<style>{STYLE}</style><title>", 1) + "\n"
