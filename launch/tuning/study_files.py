"""What a study leaves on disk: results.json, the page, best.yaml, and only the checkpoints that are still needed."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.config_loading import dump_yaml
from cluster.disk.atomic_files import write_json, write_text
from cluster.paths import RunPaths
from launch.config import RunConfig
from launch.saved_config import absolute_values
from launch.tuning.page import write_page
from launch.tuning.results import TrialResult, best_of, results_of
from launch.tuning.space import Space, placed
from launch.tuning.study import StudyFolder


def write_results(study: Any, folder: StudyFolder, run: RunConfig, space: Space) -> list[TrialResult]:
    """Write results.json, the page and best.yaml; remove the checkpoints of trials that are over and not the best."""
    results = results_of(study, space)
    best = best_of(results)
    write_json(
        folder.results, {"best": best.number if best else None, "trials": [asdict(result) for result in results]}
    )
    write_page(folder.page, run.name, results, space)
    if best is not None:
        write_text(folder.best, best_yaml(run, best, folder.root))
    for result in results:
        if result.state != "unfinished" and result is not best:
            shutil.rmtree(RunPaths(folder.trial(result.number)).checkpoints, ignore_errors=True)
    return results


def best_yaml(run: RunConfig, best: TrialResult, root: Path) -> str:
    """Return the run's configuration with the best trial's values: a run of its own, on the same shards."""
    values = placed(absolute_values(run), best.values)
    name = f"{run.name}-best"
    values |= {"name": name, "folder": str(run.paths.root.absolute().with_name(name))}
    told = f"# The values of trial {best.number} of the study in {root.absolute()}: held-out loss {best.loss:.4f}.\n"
    return told + dump_yaml(values)
