"""The loss as an SVG file of its own, with its text, as a page of the Hub shows it."""

from __future__ import annotations

from html import escape

from training.reporting.page.charts import SIZE, Chart, Series

TITLE = "Training and held-out loss by step"
WIDTH, HEIGHT = 760, 380
LEFT, TOP, RIGHT, BOTTOM = 62, 46, 16, 46  # margins around the plot
COLOURS = {1: "#1f5fae", 2: "#b3510b"}
STROKES = {  # of the styles that the chart of the loss has
    "thin": 'fill="none" stroke-width="1" stroke-opacity="0.35"',
    "bold": 'fill="none" stroke-width="2.2"',
    "dots": 'fill="none" stroke-width="7" stroke-linecap="round"',
}


def picture(chart: Chart) -> str:
    """Return a chart as an SVG file on white, readable on light and dark pages."""
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    rows = [TOP + label.at / 100 * high for label in chart.y_labels]
    texts = [
        *(text_at(LEFT - 8, y + 4, label.text, "end") for y, label in zip(rows, chart.y_labels, strict=True)),
        *(text_at(LEFT + x.at / 100 * wide, HEIGHT - BOTTOM + 20, x.text, "middle") for x in chart.x_labels),
        text_at(LEFT + wide / 2, HEIGHT - 8, chart.x_name, "middle"),
        text_at(LEFT, 18, f"{chart.title}, {chart.y_name}", "start", 'font-weight="600" fill="#1b1d20"'),
    ]
    grid = [f'<path d="M{LEFT} {y:.1f}h{wide}" stroke="#e6e8ea"/>' for y in rows]
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"',
            ' font-family="system-ui, sans-serif" font-size="13" fill="#5c6168" role="img">',
            f"<title>{escape(TITLE)}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *grid,
            f'<svg x="{LEFT}" y="{TOP}" width="{wide}" height="{high}" viewBox="0 0 {SIZE} {SIZE}"',
            ' preserveAspectRatio="none" overflow="visible">',
            *(curve(chart, one) for one in chart.series),
            "</svg>",
            *texts,
            *legend(chart),
            "</svg>\n",
        ]
    )


def curve(chart: Chart, one: Series) -> str:
    drawn = next((x, y) for series, x, y in chart.drawn if series is one)
    stroke = f'stroke="{COLOURS[one.colour]}" {STROKES[one.style]} vector-effect="non-scaling-stroke"'
    return f'<path d="{chart.path(one, *drawn)}" {stroke}/>'


def legend(chart: Chart) -> list[str]:
    """Return the names of the curves, from the right, each behind a piece of its line."""
    found, right = [], float(WIDTH - RIGHT)
    for one in reversed([one for one in chart.series if one.style != "dots"]):
        name = "each step" if one.style == "thin" else one.name
        right -= 7.5 * len(name)
        line = f'<path d="M{right - 26:.0f} 14h20" stroke="{COLOURS[one.colour]}" {STROKES[one.style]}/>'
        found += [line, text_at(right, 18, name, "start")]
        right -= 44
    return found


def text_at(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
