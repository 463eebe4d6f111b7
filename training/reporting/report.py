"""The report of a run: one HTML page with figures, curves, data and answers, from what the run's folder holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import write_text
from cluster.errors import DataError
from cluster.paths import RunPaths
from cluster.wording import count_of
from data_prep.shards import Manifest, read_manifest
from training.config import TrainConfig
from training.plan import Plan
from training.reporting.incidents import incidents
from training.reporting.page.evaluation_tables import tables
from training.reporting.page.facts import facts_of, figures_of, model_name
from training.reporting.page.goodput import wall_time
from training.reporting.page.hardware import compute_of
from training.reporting.page.rendering import render
from training.reporting.page.verdicts import judged
from training.reporting.plots import plots
from training.reporting.run_state import RunState, read_record, read_state
from training.reporting.status import command, is_stale, validation_text

SHOWN_INCIDENTS = 40
SHOWN_COLUMNS = 12


def write_report(paths: RunPaths, shards: Path, name: str) -> Path:
    """Write the run's `report.html` from what the run's folder holds so far; return its path.

    Where something is missing, the page shows the command that makes it. The page follows from the run's files alone,
    except for the line that says when and with which versions it was written.
    """
    state, evaluation, plan = read_state(paths), read_record(paths.evaluation), read_record(paths.plan)
    manifest, problem = manifest_or_problem(shards)
    compute = compute_of(state, plan)
    page = render(
        "run.html",
        name=name,
        model=model_name(paths, evaluation),
        state=state,
        verdict=judged(state),
        key_figures=figures_of(state, evaluation, compute) if state.lines else [],
        facts=facts_of(paths, state, plan, evaluation),
        charts=plots(state, evaluation, compute) if state.lines else [],
        validation=validation_text(state.validation),
        shares=wall_time(state),
        incidents=incidents(state.events),
        shown=SHOWN_INCIDENTS,
        manifest=manifest,
        problem=problem,
        source_notes=source_notes,
        evaluation=evaluation,
        tables=tables(evaluation) if evaluation else [],
        is_stale=evaluation is not None and is_stale(evaluation, paths.export),
        plan=plan_text(plan),
        config=paths.config.read_text(encoding="utf-8") if paths.config.is_file() else "",
        ran_with=versions_of(state),
        certificate=certificate_text(read_record(paths.certificate)),
        commands={verb: command(verb, paths) for verb in ("train", "evaluate", "inspect", "verify-resume")},
    )
    write_text(paths.report, page)
    return paths.report


def manifest_or_problem(shards: Path) -> tuple[Manifest | None, str]:
    try:
        return read_manifest(shards), ""
    except DataError as error:
        return None, str(error)


def plan_text(record: dict[str, Any] | None) -> str:
    """Return the plan as it was printed; a plan that another version of this program wrote, as JSON."""
    if record is None:
        return ""
    try:
        return Plan(**{**record, "config": TrainConfig.model_validate(record["config"])}).as_text()
    except (KeyError, TypeError, ValueError):
        return json.dumps(record, indent=2)


def source_notes(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the manifest tells of a source beyond its documents, as label and text."""
    found = [("licence", counts.get("license") or counts.get("licence") or "")]
    for label, key in (("changed", "changed"), ("files not read", "passed_over")):
        found.append((label, ", ".join(f"{name} {count:,}" for name, count in (counts.get(key) or {}).items())))
    columns = list(counts.get("unused") or [])
    more = f" and {len(columns) - SHOWN_COLUMNS:,} more" if len(columns) > SHOWN_COLUMNS else ""
    found.append(("columns not used", ", ".join(columns[:SHOWN_COLUMNS]) + more))
    return [(label, str(text)) for label, text in found if text]


def versions_of(state: RunState) -> list[str]:
    """Return the distinct versions that the attempts ran with, the oldest first."""
    told = []
    for attempt in state.attempts:
        found = attempt.start.get("versions") or {}
        commit = (
            f" ({found['commit'][:12]}{', changed since' if found.get('dirty') else ''})" if found.get("commit") else ""
        )
        names = [name for name in found if name not in ("commit", "dirty")]
        told.append(", ".join(f"{name} {found[name]}{commit if name == 'shardline' else ''}" for name in names))
    return list(dict.fromkeys(filter(None, told)))


def certificate_text(record: dict[str, Any] | None) -> str:
    """Return what `verify-resume` found; "" if it was not run."""
    if record is None:
        return ""
    same = "the same to the bit" if record.get("bit_identical") else "NOT the same"
    within = "within" if record.get("other_ranks_within_tolerance") else "NOT within"
    ranks, others = (count_of(record.get(key, 0), "rank") for key in ("ranks", "other_ranks"))
    difference = record.get("other_ranks_largest_relative_loss_difference", float("nan"))
    return (
        f"Killed after step {record.get('killed_after_step')} of {record.get('steps')} and resumed on"
        f" {ranks}, losses and gradient norms were {same}; on {others},"
        f" losses differed by {difference:.1e} at most, {within} {record.get('tolerance', float('nan')):.0e}."
    )
