"""The parts of a report: axes and points of charts, the shares of the wall time, the tables of an evaluation."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.reporting.page.axes import log_ticks, ticks
from training.reporting.page.charts import BUCKETS, Chart, Series, decimated
from training.reporting.page.evaluation_tables import tables
from training.reporting.page.facts import mfu_figures
from training.reporting.page.goodput import goodput, wall_time
from training.reporting.page.hardware import compute_of
from training.reporting.plots import mfu_chart
from training.reporting.run_state import RunState, paired_attempts

H100 = {"event": "start", "time": "2026-11-20T12:00:00+00:00", "step": 0, "world_size": 2, "device": "NVIDIA H100 80GB"}
PLAN = {"parameters": 1000, "trained_parameters": 100}


def chart(y: list[float], **options: Any) -> Chart:
    series = [Series(name="loss </script>", x=range(len(y)), y=y)]
    return Chart(key="k", title="<b>", x_name="step", y_name="nats", series=series, **options)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=4000))
def test_a_decimated_curve_keeps_its_ends_and_its_extremes(values: list[float]) -> None:
    x, y = decimated(np.arange(len(values), dtype=float), np.array(values))
    assert len(x) <= 2 * BUCKETS + 2
    assert (x[0], y[0], x[-1], y[-1]) == (0, values[0], len(values) - 1, values[-1])
    assert (y.min(), y.max()) == (min(values), max(values))
    assert all(values[int(place)] == value for place, value in zip(x, y, strict=True))


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_ticks_lie_inside_of_the_axis_and_differ(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-7 * abs(low):  # nearer than five digits tell
        return
    found = ticks(low, high, 5)
    assert 1 <= len(found) <= 6 and all(low - width * 1e-6 <= value <= high + width * 1e-6 for value, _ in found)


@pytest.mark.parametrize(("low", "high"), [(0, 1e-4), (0, 6.2), (1.6, 1.9), (0, 100_000), (0, 4e10), (9_000, 12_000)])
def test_ticks_of_usual_axes_have_texts_that_differ(low: float, high: float) -> None:
    texts = [text for _, text in ticks(low, high, 5)]
    assert len(set(texts)) == len(texts) >= 2 and max(map(len, texts)) <= 6


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (1e-5, 1e-3, ["1e-5", "3e-5", "1e-4", "3e-4", "0.001"]),
        (4, 64, ["5", "10", "20", "50"]),
        (1e-9, 10, ["1e-9", "1e-7", "1e-5", "0.001", "0.1", "10"]),
        (0.0021, 0.0024, ["2.1e-3", "2.2e-3", "2.3e-3", "2.4e-3"]),
    ],
)
def test_a_logarithmic_axis_is_labelled_with_values_about_as_far_from_each_other(
    low: float, high: float, texts: list[str]
) -> None:
    assert [text for _, text in log_ticks(low, high, 6)] == texts


def test_equal_factors_are_equally_far_on_a_logarithmic_axis() -> None:
    series = [Series(name="loss", x=[1e-5, 1e-4, 1e-3], y=[1.0, 2.0, 3.0])]
    one = Chart(key="k", title="t", x_name="rate", y_name="nats", series=series, x_log=True)
    assert [round(one.across(x)) for x in series[0].x] == [0, 500, 1000]


@given(st.lists(st.floats(), max_size=60), st.booleans())
def test_any_values_make_a_chart(values: list[float], from_zero: bool) -> None:
    one = chart(values, from_zero=from_zero)
    assert "nan" not in one.svg.lower() and "inf" not in one.svg.split("</title>")[1]
    assert json.loads(one.values)["series"][0]["name"] == "loss </script>"


def test_text_from_outside_cannot_leave_its_place_in_a_chart() -> None:
    one = chart([1.0, 2.0])
    assert "<b>" not in one.svg and "<" not in one.values


def test_values_beyond_the_axis_are_told() -> None:
    one = chart([2.0 + 0.001 * n for n in range(500)] + [90.0])
    assert one.note == "Above the axis: 1 value, the highest 90." and one.y_range[1] < 4


def test_a_long_curve_tells_that_it_is_decimated() -> None:
    assert chart([1.0] * 100_000).note == "Drawn by the lowest and the highest of every 250 points."


def started(minute: int, step: int, **facts: Any) -> dict[str, Any]:
    return {**H100, "time": f"2026-11-20T12:{minute:02d}:00+00:00", "step": step, "phases": {"imports": 20.0}, **facts}


def state_of(events: list[dict[str, Any]], steps: int) -> RunState:
    times = {"step_s": 2.0, "data_wait_s": 0.5, "save_s": 0.25}
    lines = [{"step": n + 1, "loss": 1.0, "tokens_per_s": 1e6, **times} for n in range(steps)]
    attempts = paired_attempts(events, lines)
    return RunState(total_steps=steps, lines=lines, attempts=attempts, validation={}, events=events)


def test_shares_of_the_wall_time_add_up_and_name_what_was_lost() -> None:
    stopped = {"event": "end", "time": "2026-11-20T12:01:00+00:00", "step": 15, "reason": "TERM", "exit_code": 75}
    done = {"event": "end", "time": "2026-11-20T12:05:00+00:00", "step": 30, "reason": "done", "exit_code": 0}
    state = state_of([started(0, 0), stopped, started(4, 10), done], steps=30)
    shares = wall_time(state)
    assert {share.key: share.seconds for share in shares} == {
        "steps": 30 * 1.25,
        "data": 15.0,
        "saving": 7.5 + 20,  # of the second attempt's 60 s, 40 are steps
        "discarded": 40.0,  # of the first attempt's 60 s, 10 steps were kept
        "start": 20.0 + 20.0,
        "between": 180.0 - 20.0,
    }
    assert math.fsum(share.seconds for share in shares) == state.elapsed_s + 20
    assert goodput(shares) == pytest.approx(37.5 / 320)


def test_the_mfu_counts_a_frozen_parameter_less_than_a_trained_one() -> None:
    compute = compute_of(state_of([H100], steps=1), PLAN)
    assert compute.flops_per_token == 6 * 100 + 4 * 900 and compute.peak_flops == 2 * 989e12


@pytest.mark.parametrize(("device", "why"), [("Xeon", "the peak of Xeon is not known"), ("", "was not recorded")])
def test_no_mfu_is_made_up_for_a_device_that_is_not_known(device: str, why: str) -> None:
    compute = compute_of(state_of([{**H100, "device": device}], steps=1), PLAN)
    assert compute.peak_flops is None and why in compute.explained


def test_figures_that_this_version_does_not_know_are_in_the_tables() -> None:
    models = {
        "base": {"path": "b", "loss": 3.0, "replies": {"chrf": 0.25}, "new_figure": 0.5, "classification": None},
        "tuned": {"path": "t", "loss": 2.0, "replies": {"chrf": 0.5}, "new_figure": math.nan, "classification": None},
    }
    tasks = {"boolq": {"acc": {"base": 0.5, "tuned": 0.75, "stderr_base": 0.01, "stderr_tuned": 0.02}}}
    scores, harness, probes = tables({"models": models, "tasks": tasks, "data": {"words": {"he": 3}}})
    assert [(row.label, row.values) for row in scores.rows] == [
        ("Loss", ("3.0000", "2.0000")),
        ("chrF", ("0.250", "0.500")),
        ("New figure", ("0.5", "nan")),
    ]
    assert [(row.label, row.values) for row in harness.rows] == [("boolq, acc", ("0.5 ± 0.01", "0.75 ± 0.02"))]
    assert [(row.label, row.values) for row in probes.rows] == [("Words: he", ("3",))]


def test_the_mfu_that_was_measured_is_drawn_and_not_the_one_by_the_number_of_parameters() -> None:
    lines = [
        {"step": n, "loss": 1.0, "tokens_per_s": 9.0, "step_s": 1.0, "data_wait_s": 0.0, "mfu": mfu}
        for n, mfu in ((1, 0.41), (2, 0.42))
    ]
    attempts = paired_attempts([H100], lines)
    state = RunState(total_steps=2, lines=lines, attempts=attempts, events=[H100], validation={})
    (found,) = mfu_chart(state.lines, compute_of(state, PLAN), [])
    assert list(found.series[0].y) == [0.41, 0.42] and "no padding" in found.caption
    assert mfu_figures(state, compute_of(state, PLAN))[0][1] == "41.5%"
