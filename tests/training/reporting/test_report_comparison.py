"""`shardline report` on several runs, and a report in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config_loading import dump_yaml
from cluster.paths import RunPaths
from launch.__main__ import main
from training.reporting.comparison import write_comparison

CHROMIUM = Path("/usr/bin/chromium")


def make_run(root: Path, name: str, learning_rate: float, steps: int = 40) -> RunPaths:
    """Write the files of a run that was restarted once."""
    paths = RunPaths(root / name)
    paths.root.mkdir()
    train = {"learning_rate": learning_rate, "steps": steps, "lora": None}
    config = {
        "name": name,
        "folder": ".",
        "model": {"path": "base"},
        "data": {"sources": [{"path": "x"}]},
        "train": train,
    }
    paths.config.write_text(dump_yaml(config))
    lines = [
        {"step": n, "loss": 3 - n * learning_rate, "gradient_norm": 1.0, "learning_rate": learning_rate}
        | {"trained_tokens": 1000, "tokens_per_s": 500.0, "step_s": 2.0, "data_wait_s": 0.1, "memory_gb": 1.5}
        for n in range(1, steps + 1)
    ]
    paths.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = {"event": "start", "time": "2026-11-20T12:00:00+00:00", "step": 0, "world_size": 2}
    held_out = [{"event": "validation", "time": start["time"], "step": n, "loss": 3 - n * 0.01} for n in (20, 40)]
    again = {**start, "time": "2026-11-20T12:02:00+00:00", "step": 20}
    paths.attempts.write_text("".join(json.dumps(event) + "\n" for event in (start, *held_out, again)))
    return paths


def test_a_comparison_shows_the_settings_that_differ_and_no_others(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, rate) for name, rate in (("slow", 0.01), ("fast", 0.05))]
    page = write_comparison([(run, run.shards, run.root.name) for run in runs], tmp_path / "c.html").read_text()
    differing = page.partition('id="differences"')[2]
    assert re.findall(r"<code>(.*?)</code>", differing) == ["train.learning_rate"]
    assert ">0.01</td>" in differing and ">0.05</td>" in differing
    assert page.count('class="plot"') == 3 and 'data":' not in page


def test_runs_on_different_rows_are_not_compared_in_silence(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, 0.01) for name in ("a", "b")]
    page = write_comparison([(run, run.shards, "same") for run in runs], tmp_path / "c.html").read_text()
    assert "Without prepared data, so its rows cannot be compared" in page
    assert f"same ({runs[0].root})" in page  # runs of one name are told apart


def test_the_comparison_goes_to_the_current_folder_or_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(make_run(tmp_path, name, 0.01).root) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert main(["report", *runs]) == 0 and (tmp_path / "compare-a-b.html").is_file()
    assert main(["report", *runs, "--output", "new/c.html"]) == 0 and (tmp_path / "new" / "c.html").is_file()
    assert capsys.readouterr().out == "compare-a-b.html\nnew/c.html\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a", "b", "-o", "seed=1"], "-o: not with several runs"),
        (["a", "b", "--output", "."], "--output .: a folder"),
        (["a", "a"], "named twice"),
        (["a", "--output", "one.html"], "--output: only for a comparison"),
    ],
)
def test_a_comparison_that_cannot_be_meant_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    for name in ("a", "b"):
        make_run(tmp_path, name, 0.01)
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.fixture
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"], timeout=120_000)
        yield one
        one.close()


@pytest.mark.slow
def test_a_report_in_a_browser_fits_a_phone_asks_no_network_and_shows_values(tmp_path: Path, browser: Any) -> None:
    from playwright.sync_api import expect

    run = make_run(tmp_path, "a" * 70, 0.01)
    assert main(["report", str(run.root)]) == 0
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_default_timeout(60_000)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(run.report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    loss = page.locator("#chart-loss .plot")
    loss.hover(position={"x": 100, "y": 60})
    expect(loss.locator(".tip")).to_have_text(re.compile(r"^step \d+\s*loss 2\.\d+"), timeout=60_000)
    loss.focus()
    page.keyboard.press("End")
    expect(loss.locator(".tip")).to_have_text(re.compile("^step 40"), timeout=60_000)
    assert (said, asked) == ([], [run.report.as_uri()])
