"""The picture of docs/scale.md: what a run loses by its number of GPUs, as an SVG that reads in light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 62, 20, 56, 58
STYLE = """
  svg { font: 13px system-ui, sans-serif; } text { fill: #1f2328; } .grid { stroke: #d0d7de; } .small { fill: #59636e; }
  .line { fill: none; stroke-width: 2.5; } .goal { stroke: #59636e; stroke-dasharray: 6 5; }
  .c0 { stroke: #cf222e; } .c1 { stroke: #0969da; } .c2 { stroke: #1a7f37; }
  .f0 { fill: #cf222e; } .f1 { fill: #0969da; } .f2 { fill: #1a7f37; } .back { fill: #ffffff; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .grid { stroke: #3d444d; } .small { fill: #9198a1; } .goal { stroke: #9198a1; }
    .c0 { stroke: #ff7b72; } .c1 { stroke: #58a6ff; } .c2 { stroke: #3fb950; }
    .f0 { fill: #ff7b72; } .f1 { fill: #58a6ff; } .f2 { fill: #3fb950; } .back { fill: #0d1117; }
  }
"""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Lost shares by GPUs: `expected` by the formula as a line, `simulated` as dots."""

    name: str
    gpus: Sequence[int]
    expected: Sequence[float]
    simulated: Sequence[float]


def picture(curves: Sequence[Curve], goal: float) -> str:
    """Return the SVG. Both axes are logarithmic."""
    gpus = [number for curve in curves for number in curve.gpus]
    shares = [share for curve in curves for share in curve.expected]
    axes = Axes(min(gpus), max(gpus), 10 ** math.floor(math.log10(min(shares))), max(shares))
    body = [*axes.grid(sorted(set(gpus))), axes.goal(goal)]
    for number, curve in enumerate(curves):
        points = [axes.at(*point) for point in zip(curve.gpus, curve.expected, strict=True)]
        body.append(f'<polyline class="line c{number}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        dots = [axes.at(*point) for point in zip(curve.gpus, curve.simulated, strict=True)]
        body += [f'<circle class="f{number}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in dots]
        body.append(f'<rect class="f{number}" x="{LEFT + 12}" y="{TOP + 10 + 20 * number}" width="14" height="4"/>')
        body.append(f'<text x="{LEFT + 34}" y="{TOP + 17 + 20 * number}">{escape(curve.name)}</text>')
    title = "Share of the time lost to saves and failures, by number of GPUs"
    head = f'<text x="{LEFT}" y="22" font-weight="600">{title}</text>'
    head += f'<text class="small" x="{LEFT}" y="42">Lines: expected. Dots: simulated. Failures as in Llama 3.</text>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{title}</title>'
    back = f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>'
    return "\n".join([svg, f"<style>{STYLE}</style>", back, head, *body, "</svg>", ""])


@dataclass(frozen=True)
class Axes:
    """Logarithmic axes: from so many GPUs to so many, and from one share to another."""

    first: float
    last: float
    low: float
    high: float

    def at(self, gpus: float, share: float) -> tuple[float, float]:
        x = math.log(gpus / self.first) / math.log(self.last / self.first)
        y = math.log(share / self.low) / math.log(self.high / self.low)
        return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)

    def grid(self, gpus: Sequence[int]) -> list[str]:
        """Return lines and labels."""
        found = []
        share = self.low
        while share <= self.high:
            for step in (1, 2, 5):
                if step * share <= self.high:
                    _, y = self.at(self.first, step * share)
                    found.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
                    found.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{step * share:.3g}</text>')
            share *= 10
        for number in gpus:
            x, _ = self.at(number, self.low)
            found.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{short(number)}</text>')
        name = "across: GPUs; upward: per cent of the time"
        found.append(f'<text class="small" x="{LEFT}" y="{HEIGHT - 10}">{name}</text>')
        return found

    def goal(self, share: float) -> str:
        _, y = self.at(self.first, share)
        label = f'<text class="small" x="{WIDTH - RIGHT}" y="{y - 6:.1f}" text-anchor="end">{share:g} %</text>'
        return f'<path class="goal" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>{label}'


def short(number: int) -> str:
    return f"{number // 1024}k" if number >= 1024 else f"{number}"
