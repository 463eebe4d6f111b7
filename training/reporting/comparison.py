"""The comparison of runs: one HTML page with their curves on the same axes, and only the settings that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cluster.disk.atomic_files import write_text
from cluster.paths import RunPaths
from training.reporting.page.comparability import warnings
from training.reporting.page.differences import (
    Compared,
    comparison_charts,
    differing_settings,
    figures_by_run,
)
from training.reporting.page.rendering import render
from training.reporting.page.verdicts import judged
from training.reporting.report import manifest_or_problem
from training.reporting.run_state import read_record, read_state


def write_comparison(runs: Sequence[tuple[RunPaths, Path, str]], output: Path) -> Path:
    """Write a page about several runs, each given as its folder, its shards and its name; return the page's path."""
    names = distinct_names(runs)
    compared = [
        Compared(
            name=name,
            paths=paths,
            state=read_state(paths),
            plan=read_record(paths.plan),
            evaluation=read_record(paths.evaluation),
            manifest=manifest_or_problem(shards)[0],
        )
        for (paths, shards, _), name in zip(runs, names, strict=True)
    ]
    page = render(
        "comparison.html",
        title=" and ".join(names) if len(names) == 2 else f"{', '.join(names[:-1])} and {names[-1]}",
        runs=compared,
        verdicts=[judged(run.state) for run in compared],
        figures=figures_by_run(compared),
        charts=comparison_charts(compared),
        settings=differing_settings(compared),
        warnings=warnings(compared),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)
    return output


def distinct_names(runs: Sequence[tuple[RunPaths, Path, str]]) -> list[str]:
    """Return the names of the runs; those that several share, with their folders."""
    counts = Counter(name for *_, name in runs)
    return [name if counts[name] == 1 else f"{name} ({paths.root})" for paths, _, name in runs]
