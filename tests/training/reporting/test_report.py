"""The page about a run: what it says, and what it never does."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.paths import RunPaths
from data_prep.shards import Manifest, ShardInfo
from data_prep.shards.writing import write_manifest
from training.config import TrainConfig
from training.plan import Plan, make_plan
from training.reporting import incidents as reporting_incidents
from training.reporting.incidents import ROUTINE, incidents
from training.reporting.plots import smoothed
from training.reporting.report import write_report

TRAINED = {"start": {"world_size": 2, "host": "node01"}, "end": {"reason": "done", "exit_code": 0, "seconds": 9.5}}


def manifest() -> Manifest:
    shard = ShardInfo(path="train/a.arrow", rows=40, tokens=1280, trained_tokens=900, bytes=1, sha256="a" * 64)
    return Manifest(
        version=1,
        config_digest="",
        tokenizer_digest="",
        template_digest="",
        row_tokens=32,
        vocab_size=512,
        packing="best_fit",
        files=[],
        splits={"train": [shard], "validation": []},
        documents={"faq.jsonl": {"read": 1234, "kept": 1200, "rejected": {"too_short": 30, "near_duplicate": 4}}},
        tokens={"trained": 900, "masked": 300, "padding": 80},
        conversational=True,
    )


def evaluation() -> dict[str, Any]:
    scores = {
        name: {"path": name, "loss": loss, "perplexity": math.exp(loss), "bits_per_byte": 1.0, "stop_rate": None}
        for name, loss in (("base", 3.25), ("tuned", 1.75))
    }
    texts = {"prompt": "Which sizes?", "reference": "XS to XL.", "base": "Which sizes?", "tuned": "XS to XL, sir."}
    sample = {**texts, "base_stopped": False, "tuned_stopped": True}
    return {"split": "validation", "rows": 7, "trained_tokens": 640, "models": scores, "samples": [sample]}


def step_line(step: int) -> dict[str, float]:
    line = {"step": step, "loss": 4 - step / 10, "gradient_norm": 1.0, "learning_rate": 1e-3, "trained_tokens": 99}
    return {**line, "tokens_per_s": 640.0, "step_s": 0.2, "data_wait_s": 0.01}


def event(kind: str, second: int, step: int) -> dict[str, Any]:
    return {"event": kind, "time": f"2026-11-20T12:00:{second:02d}+00:00", "step": step, **TRAINED[kind]}


def write_lines(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    """A finished run of 10 steps that was killed once, with its data and its evaluation."""
    paths = RunPaths(tmp_path / "boutique")
    paths.shards.mkdir(parents=True)
    config = TrainConfig(steps=10, global_batch_rows=4)
    plan = make_plan(config, write_manifest(paths.shards, manifest()), parameters=260_032, world_size=2, seed=0)
    paths.plan.write_text(json.dumps(plan.as_record()))
    paths.config.write_text("name: boutique\nmodel:\n  path: HuggingFaceTB/SmolLM2-135M\n")
    write_lines(paths.metrics, [step_line(step) for step in range(1, 11)])
    write_lines(paths.attempts, [event("start", 0, 0), event("start", 30, 5), event("end", 40, 10)])
    paths.evaluation.write_text(json.dumps(evaluation()))
    return paths


def page_of(paths: RunPaths) -> str:
    return write_report(paths, paths.shards, "boutique").read_text(encoding="utf-8")


def test_page_shows_what_came_of_the_run(run: RunPaths) -> None:
    page = page_of(run)
    assert "<h1>boutique</h1>" in page and "HuggingFaceTB/SmolLM2-135M · finished" in page
    for figure in ("3.250 → 1.750", "-46%", "25.8 → 5.75", ">10</dd>", ">990</dd>", ">40 s</dd>"):
        assert figure in page, figure
    for fact in (
        "1,234",
        "too_short 30, near_duplicate 4",
        "trained\n70.3% (900)",
        "XS to XL, sir.",
        "260,032 param",
        "full: every weight",
    ):
        assert fact in page, fact


def test_a_killed_attempt_is_called_killed_with_the_steps_that_were_kept(run: RunPaths) -> None:
    page = page_of(run)
    assert "0 → ?" in page and "killed: no end was written; 5 of its steps are kept" in page
    assert "running, or killed" not in page


def test_the_last_attempt_without_an_end_may_still_run(run: RunPaths) -> None:
    write_lines(run.attempts, [event("start", 0, 0)])
    assert "running, or killed: no end was written; 10 of its steps are kept" in page_of(run)


def happened(name: str, second: int, **facts: Any) -> dict[str, Any]:
    return {"event": name, "time": f"2026-11-20T12:00:{second:02d}+00:00", **facts}


def test_skipped_steps_rollbacks_and_starts_without_a_step_are_listed(run: RunPaths) -> None:
    skips = [happened("skip", 4, step=step, reason="loss is nan", rows=range_of(step)) for step in (4, 5, 6)]
    back = happened("rollback", 5, step=2, failed_step=6, barred=[3, 4, 5, 6])
    refused = happened("no-start", 20, reason="DataError: <a.arrow>: missing", exit_code=2)
    begun, *rest = [event("start", 0, 0), event("start", 30, 5), event("end", 40, 10)]
    write_lines(run.attempts, [begun, *skips, back, refused, *rest])
    page = page_of(run)
    rows = re.findall(
        r"<tr><td class=\"time\">[^<]*</td>\n<td class=\"time\">(.*?)</td><td class=\"why\">(.*?)</td>\n"
        r"<td class=\"why\">(.*?)</td></tr>",
        page,
    )
    assert rows == [
        ("4 to 6", "skipped: loss is nan", "40, 41, 42, 43, 50, 51, 52, 53 and 4 more"),
        ("6", "rolled back to step 2; excluded from then on: steps 3 to 6", "—"),
        ("—", "no step taken: DataError: &lt;a.arrow&gt;: missing (exit code 2)", "—"),
    ]


def range_of(step: int) -> list[int]:
    return list(range(10 * step, 10 * step + 4))


def test_a_run_without_incidents_has_no_list_of_them(run: RunPaths) -> None:
    assert "Incidents" not in page_of(run)


def test_every_event_that_the_code_writes_is_routine_or_told_in_words() -> None:
    root = Path(__file__).resolve().parents[3]
    files = [path for room in ("cluster", "training", "launch") for path in (root / room).rglob("*.py")]
    written = re.compile(r'(?:write_event\([\w.]+, |(?:self|journal)\.(?:event|record)\()"([\w-]+)"')
    names = {name for path in files for name in written.findall(path.read_text(encoding="utf-8"))}
    source = inspect.getsource(reporting_incidents)
    assert {"rounding", "slow-rank", "host-excluded", "proof"} <= names
    assert [name for name in sorted(names) if name not in ROUTINE and f'case "{name}"' not in source] == []


def test_a_start_that_rounds_otherwise_is_an_incident() -> None:
    changed = {"train.attention": ["auto", "sdpa"], "train.loss_chunk_tokens": [None, 64]}
    older, found = incidents([happened("rounding", 4, changed=changed, **more) for more in ({}, {"step": 8})])
    told = "train.attention was auto, is sdpa, train.loss_chunk_tokens was None, is 64"
    assert older.what == f"sums round otherwise from here on: {told}"
    assert found.what == f"sums round otherwise from step 9 on: {told}"


def test_only_the_newest_of_many_incidents_are_listed(run: RunPaths) -> None:
    skips = [happened("skip", 4, step=2 * n, reason="loss is nan", rows=[n]) for n in range(1, 101)]
    write_lines(run.attempts, [event("start", 0, 0), *skips])
    page = page_of(run)
    assert "The newest 40 of 100" in page and page.count("skipped: loss is nan") == 40 and ">200<" in page


def test_validation_loss_is_drawn_and_told(run: RunPaths) -> None:
    told = [happened("validation", 4, step=step, loss=loss) for step, loss in ((4, 3.5), (8, 3.25), (10, math.nan))]
    write_lines(run.attempts, [event("start", 0, 0), *told[:2]])
    page = page_of(run)
    assert "Held-out during training: loss 3.2500 at step 8; lowest: 3.2500 at step 8." in page
    assert "<dt>Validation loss</dt>" not in page  # the evaluation says more
    dots = re.findall(r'class="dots [^"]*" d="([^"]*)"', page)
    write_lines(run.attempts, [event("start", 0, 0), *told])
    assert re.findall(r'class="dots [^"]*" d="([^"]*)"', page_of(run)) == dots  # what is no number has no dot
    run.evaluation.unlink()
    page = page_of(run)
    assert ">nan</dd>" in page and "the newest; lowest: 3.250 at step 8" in page


def test_script_in_an_answer_stays_text(run: RunPaths) -> None:
    found = evaluation()
    found["samples"][0] |= {"tuned": "<script>alert(1)</script>", "prompt": "<b>\"'&", "reference": "{{ 6 * 7 }}"}
    run.evaluation.write_text(json.dumps(found))
    page = page_of(run)
    assert "alert" not in "".join(scripts_of(page)) and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;&#34;&#39;&amp;" in page and "{{ 6 * 7 }}" in page


def scripts_of(page: str) -> list[str]:
    return re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)


def test_page_asks_nothing_of_a_network(run: RunPaths) -> None:
    page = page_of(run)
    assert not re.search(r"https?://|<link|<img|<iframe|@import|\bsrc=|fetch\(", page)
    assert set(re.findall(r"(?:href=\"|url\()(.)", page)) == {"#"}
    (own,) = [script for script in scripts_of(page) if not script.startswith("{")]
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_ids_are_unique_and_every_reference_has_its_target(run: RunPaths) -> None:
    page = page_of(run)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_page_written_twice_differs_in_nothing_but_the_time(run: RunPaths) -> None:
    first, second = (re.sub(r"Written at .* UTC", "", page_of(run)) for _ in range(2))
    assert first == second


def test_page_without_evaluation_names_the_command_that_makes_one(run: RunPaths) -> None:
    run.evaluation.unlink()
    page = page_of(run)
    assert f"No evaluation yet: <code>shardline evaluate {run.root}</code>" in page
    assert "Training loss" in page and "Perplexity" not in page


def test_line_that_a_crash_cut_short_is_left_out(run: RunPaths) -> None:
    write_lines(run.metrics, [step_line(step) for step in range(1, 7)])
    with run.metrics.open("a") as stream:
        stream.write('{"step": 7, "loss": 3.')
    assert "step 6 of 10" in page_of(run)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_loss_that_is_no_number_does_not_hide_the_others(run: RunPaths, loss: float) -> None:
    write_lines(run.metrics, [step_line(1), {**step_line(2), "loss": loss}, step_line(3)])
    run.evaluation.unlink()
    assert "3.900 → 3.7" in page_of(run)


def test_run_planned_but_without_a_step_has_a_page(run: RunPaths) -> None:
    for path in (run.metrics, run.attempts, run.evaluation):
        path.write_text("") if path is run.metrics else path.unlink()
    page = page_of(run)
    assert "never trained" in page and "<svg" not in page
    assert f"No step yet: <code>shardline train {run.root}</code>" in page


def test_empty_folder_has_a_page_that_says_how_to_begin(tmp_path: Path) -> None:
    page = page_of(RunPaths(tmp_path / "new"))
    assert "never trained" in page and "run `shardline prepare RUN.yaml` first" in page


def test_plan_of_another_version_is_shown_as_it_stands(run: RunPaths) -> None:
    run.plan.write_text(json.dumps({"total_steps": 10, "unheard_of": 1}))
    assert "&#34;unheard_of&#34;: 1" in page_of(run)
    assert "unheard_of" not in {field.name for field in dataclasses.fields(Plan)}


def test_running_mean_of_a_constant_is_the_constant() -> None:
    assert smoothed([math.nan, 2.0, 2.0, math.inf, 2.0])[1:] == pytest.approx([2.0] * 4)
    assert smoothed([1.0] * 1000) == pytest.approx([1.0] * 1000)


def test_neither_report_nor_status_imports_torch() -> None:
    code = (
        "import sys, training.reporting.report, training.reporting.status;"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
