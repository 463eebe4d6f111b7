"""`shardline report` on several runs, and a report in a real browser."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config_loading import dump_yaml
from cluster.model_files import weights_digest
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


def evaluate_run(run: RunPaths, **told: Any) -> None:
    """Write what `evaluate` writes about the run's export; keywords are other than usual."""
    run.export.mkdir(exist_ok=True)
    (run.export / "model.safetensors").write_bytes(b"weights")
    losses = {name: {"path": name, "loss": 2.0, "bits_per_byte": 1.0} for name in ("base", "tuned")}
    counts = {"rows": 8, "documents": 16, "trained_tokens": 500, "dtype": "float32"}
    exported = {"path": str(run.export), "digest": weights_digest(run.export)}
    run.evaluation.write_text(json.dumps({**counts, "models": losses, "export": exported, **told}))


def warned(runs: list[RunPaths]) -> list[str]:
    """Return what a comparison warns of, but for the data that these runs lack."""
    page = write_comparison([(run, run.shards, run.root.name) for run in runs], runs[0].root / "c.html").read_text()
    return [html.unescape(text) for text in re.findall('class="verdict warn">(.*?)</p>', page)][1:]


def test_evaluations_of_the_same_rows_of_the_exports_that_are_there_are_compared_without_a_warning(
    tmp_path: Path,
) -> None:
    runs = [make_run(tmp_path, name, 0.01) for name in ("a", "b", "never-evaluated")]
    for run in runs[:2]:
        evaluate_run(run)
    assert warned(runs) == []
    assert "8 rows, 16 documents, 500 trained tokens, float32" in (runs[0].root / "c.html").read_text()


def test_evaluations_of_different_rows_are_told_with_the_command_for_the_same_rows(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, 0.01) for name in ("a", "b")]
    evaluate_run(runs[0])
    evaluate_run(runs[1], rows=3, documents=6, trained_tokens=186)
    (text,) = warned(runs)
    assert "a: 8 rows, 16 documents, 500 trained tokens; b: 3 rows, 6 documents, 186 trained tokens" in text
    assert text.endswith(f"to compare them: shardline evaluate {runs[1].root} -o evaluate.rows=8")


def test_as_many_rows_of_other_data_are_not_compared_in_silence(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, 0.01) for name in ("a", "b")]
    evaluate_run(runs[0])
    evaluate_run(runs[1], trained_tokens=501)
    (text,) = warned(runs)
    assert "(a: 500 trained tokens; b: 501 trained tokens)" in text
    assert all(f"shardline evaluate {run.root} -o evaluate.rows=8" in text for run in runs)


def test_an_evaluation_of_an_earlier_export_is_told_in_a_comparison_too(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, 0.01) for name in ("a", "b")]
    for run in runs:
        evaluate_run(run)
    (runs[1].export / "model.safetensors").write_bytes(b"others!")
    (text,) = warned(runs)
    assert text.startswith("The evaluation of b is of an earlier export than the one that is there now")
    assert text.endswith(f"shardline evaluate {runs[1].root}")


def test_evaluations_in_different_precisions_are_told(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, 0.01) for name in ("a", "b", "c")]
    for run, dtype in zip(runs, ("float32", "bfloat16", None), strict=True):
        evaluate_run(run, dtype=dtype)
    evaluation = json.loads(runs[2].evaluation.read_text())
    runs[2].evaluation.write_text(json.dumps({key: evaluation[key] for key in ("rows", "trained_tokens", "models")}))
    (text,) = warned(runs)  # the third is of an earlier version, which does not tell
    assert "(a float32, b bfloat16, c unknown)" in text
    assert f"shardline export {runs[1].root} -o export.dtype=fp32; shardline evaluate {runs[1].root}" in text


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
