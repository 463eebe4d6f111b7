"""Line charts for a page: stretchable inline SVG with HTML labels, and the values that the page shows under a pointer.

The SVG has no text. It is stretched to whatever width the page has, and lines keep their width; the labels are HTML,
placed in percent of the plot, so that they keep their size on a phone and on a wide screen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from markupsafe import Markup

from training.reporting.page.axes import Numbers, log_ticks, place, ticks, widened

BUCKETS = 400  # a longer curve is drawn by the lowest and the highest point of so many spans of equal length
SIZE = 1000  # of the SVG's own coordinates
FAR = 4.0  # values farther above the 99.5th percentile than so many times the span below it are cut off at the axis
LARGEST = 1e300
NAMES_WIDTH = 42  # letters that fit below the x axis on a phone
POINT_MARGIN = 0.04  # of the axis, on both sides of points that are drawn as dots
Style = Literal["thin", "bold", "dots", "area", "steps"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve; `colour` is the number of a colour of the page's style sheet, 0 the muted one.

    `group` is its name in the legend, where several curves share one. If `names` names each point, then the pointer
    shows them, at points of this series only; a series that is decimated loses them.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style = "bold"
    colour: int = 1
    group: str = ""
    names: Sequence[str] = ()

    @property
    def legend(self) -> str:
        return self.group or self.name


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line at `x`, such as a restart; or with `y`, a horizontal one with a name."""

    name: str
    kind: str
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True, kw_only=True)
class Label:
    """A number at an axis, and its place in percent from the left or the top."""

    text: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with its title, the names of its axes with their units, and what its caption says.

    The x axis ends at `x_ends` where they are farther apart than the points. With `x_names`, it has these names instead
    of the numbers 0, 1, 2 ...
    """

    key: str
    title: str
    x_name: str
    y_name: str
    series: Sequence[Series]
    caption: str = ""
    marks: Sequence[Mark] = ()
    from_zero: bool = False
    is_share: bool = False
    is_wide: bool = False
    x_log: bool = False
    x_ends: tuple[float, float] | None = None
    x_names: Sequence[str] = ()
    x_range: tuple[float, float] = field(init=False)
    y_range: tuple[float, float] = field(init=False)
    beyond: str = field(init=False)

    def __post_init__(self) -> None:
        xs = np.concatenate([finite(s.x, s.y)[0] for s in self.series] or [np.empty(0)])
        ys = np.concatenate([finite(s.x, s.y)[1] for s in self.series] or [np.empty(0)])
        low, high, beyond = y_limits(ys, [mark.y for mark in self.marks if mark.y is not None], self.from_zero)
        object.__setattr__(self, "x_range", self.x_limits(xs))
        object.__setattr__(self, "y_range", (low, high))
        object.__setattr__(self, "beyond", beyond)

    def x_limits(self, values: Numbers) -> tuple[float, float]:
        """Return the ends of the x axis."""
        ends = [*(self.x_ends or ()), *((-0.5, len(self.x_names) - 0.5) if self.x_names else ())]
        found = np.concatenate([values, ends])
        if not len(found):
            return 0.0, 1.0
        margin = POINT_MARGIN if any(one.names for one in self.series) and not self.x_names else 0.0
        return widened(float(found.min()), float(found.max()), margin=margin, is_log=self.x_log)

    @cached_property
    def drawn(self) -> list[tuple[Series, Numbers, Numbers]]:
        """Each series with the points that are drawn."""
        return [(one, *decimated(*finite(one.x, one.y))) for one in self.series]

    @property
    def x_labels(self) -> list[Label]:
        if self.x_names:
            most = max(3, NAMES_WIDTH // len(self.x_names))
            texts = [name if len(name) <= most else f"{name[: most - 1]}…" for name in self.x_names]
            found = [(float(place), text) for place, text in enumerate(texts)]
        else:
            found = log_ticks(*self.x_range, 6) if self.x_log else ticks(*self.x_range, 5)
        return [Label(text=text, at=self.across(value) / SIZE * 100) for value, text in found]

    @property
    def y_labels(self) -> list[Label]:
        found = ticks(*self.y_range, 5 if self.is_wide else 4)
        if self.is_share:
            found = [(value, f"{value * 100:.3g}%") for value, _ in found]
        return [Label(text=text, at=self.down(value) / SIZE * 100) for value, text in found]

    @property
    def legend(self) -> list[Series]:
        """One series for each name in the legend. Dots without names of their own belong to a line."""
        shown = [one for one in self.series if one.style != "dots" or one.names]
        return list({one.legend: one for one in shown}.values())

    def across(self, value: float) -> float:
        return float(self.across_all(np.array([value]))[0])

    def down(self, value: float) -> float:
        low, high = self.y_range
        return SIZE - (value - low) / (high - low) * SIZE

    @property
    def summary(self) -> str:
        """What somebody who cannot see the chart is told."""
        told = [f"{self.title}: {self.y_name} by {self.x_name}."]
        for one in self.series:
            x, y = finite(one.x, one.y)
            if len(y):
                told.append(
                    f"{one.name}: {number(y[0])} at {x_text(x[0])}, {number(y[-1])} at {x_text(x[-1])},"
                    f" lowest {number(y.min())}, highest {number(y.max())}."
                )
        return " ".join(told)

    @property
    def note(self) -> str:
        """What the caption must add about points that the chart does not show one by one."""
        longest = max((len(one.x) for one in self.series), default=0)
        notes = [self.beyond]
        if longest > 2 * BUCKETS:
            notes.append(f"Drawn by the lowest and the highest of every {math.ceil(longest / BUCKETS):,} points.")
        return " ".join(filter(None, notes))

    @property
    def svg(self) -> Markup:
        """The drawing. Its text is escaped; everything else in it is numbers."""
        lines = [f'<path class="grid" d="M0 {label.at * SIZE / 100:.0f}H{SIZE}"/>' for label in self.y_labels]
        for mark in self.marks:
            path = (
                f"M0 {self.down(mark.y):.0f}H{SIZE}"
                if mark.y is not None
                else f"M{self.across(mark.x or 0):.0f} 0V{SIZE}"
            )
            lines.append(f'<path class="mark {mark.kind}" d="{path}"/>')
        for one, x, y in self.drawn:
            lines.append(f'<path class="{one.style} colour-{one.colour}" d="{self.path(one, x, y)}"/>')
        body = Markup("".join(lines))
        opening = Markup('<svg viewBox="0 0 {0} {0}" preserveAspectRatio="none" role="img"><title>{1}</title>')
        return opening.format(SIZE, self.summary) + body + Markup("</svg>")

    def path(self, one: Series, x: Numbers, y: Numbers) -> str:
        low, high = self.y_range
        across = np.round(self.across_all(x)).astype(int)
        down = np.round(SIZE - (np.clip(y, low, high + 0.2 * (high - low)) - low) / (high - low) * SIZE).astype(int)
        points = [f"{a} {d}" for a, d in zip(across, down, strict=True)]
        if not points:
            return ""
        if one.style == "dots":
            return "".join(f"M{point}h0" for point in points)
        if one.style == "steps":
            return f"M{points[0]}" + "".join(f"H{a}V{d}" for a, d in zip(across[1:], down[1:], strict=True)) + "h0"
        if one.style == "area":
            return f"M{across[0]} {SIZE}L{'L'.join(points)}L{across[-1]} {SIZE}Z"
        return f"M{'L'.join(points)}" if len(points) > 1 else f"M{points[0]}h0"

    def across_all(self, x: Numbers) -> Numbers:
        return place(x, self.x_range, is_log=self.x_log) * SIZE

    @property
    def values(self) -> Markup:
        """The points as JSON, for the page's script."""
        series = [
            {"name": one.name, "colour": one.colour, "x": rounded(x), "y": rounded(y), **point_names(one, x)}
            for one, x, y in self.drawn
        ]
        record = {"x": self.x_range, "y": self.y_range, "xName": self.x_name, "share": self.is_share, "series": series}
        if self.x_log:
            record["log"] = True
        if self.x_names:
            record["xNames"] = list(self.x_names)
        return in_script(record)


def point_names(one: Series, drawn: Numbers) -> dict[str, list[str]]:
    """Return the names of a series' points, if all of them are drawn."""
    return {"names": list(one.names)} if one.names and len(one.names) == len(drawn) else {}


def in_script(value: Any) -> Markup:
    """Return a value as JSON that cannot end the script element that holds it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def finite(x: Sequence[float], y: Sequence[float]) -> tuple[Numbers, Numbers]:
    """Return the points whose value is a number, and not so large that a range of such values would overflow."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    kept = np.abs(ys) < LARGEST
    return xs[kept], ys[kept]


def decimated(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """Return the lowest and the highest point of each of BUCKETS spans, and the ends; a short curve as it is."""
    if len(x) <= 2 * BUCKETS:
        return x, y
    edges = np.linspace(0, len(x), BUCKETS + 1).astype(int)
    kept = {0, len(x) - 1}
    for first, stop in pairwise(edges):
        kept |= {first + int(y[first:stop].argmin()), first + int(y[first:stop].argmax())}
    places = np.array(sorted(kept))
    return x[places], y[places]


def y_limits(values: Numbers, marked: Sequence[float], from_zero: bool) -> tuple[float, float, str]:
    """Return the ends of the value axis, and what to say about values beyond it.

    A spike that is far above everything else would make the rest a flat line, so the axis ends below it.
    """
    if not len(values):
        return 0.0, 1.0, ""
    low, high = float(values.min()), float(values.max())
    usual = float(np.quantile(values, 0.995))
    beyond = ""
    if len(values) > 20 and high > usual + FAR * max(usual - low, 1e-12):
        above = int((values > usual + 0.5 * (usual - low)).sum())
        beyond = f"Above the axis: {above:,} {'value' if above == 1 else 'values'}, the highest {number(high)}."
        high = usual + 0.5 * (usual - low)
    low, high = min(low, *marked, low), max(high, *marked, high)
    if from_zero and low >= 0:
        low = 0.0
    margin = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if from_zero and low == 0 else low - margin), high + margin, beyond


def number(value: float) -> str:
    """Return a value with five significant digits, as the page's script shows it."""
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.5g}"


def x_text(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def rounded(values: Numbers) -> list[float]:
    """Return values with six significant digits, whole ones without a point."""
    found = [float(f"{value:.6g}") if abs(value) < 1e6 else round(float(value)) for value in values]
    return [int(value) if value == int(value) else value for value in found]
