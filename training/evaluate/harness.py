"""Run lm-evaluation-harness on both models, offline, and collect its results.

It runs as a command of its own, one a model, so that its offline settings are there before any library reads them.
What would go wrong quietly is taken care of: model paths are absolute (relative ones put results into a hidden folder);
the base is given the tokenizer and chat template of the run; `max_new_tokens` in a generation_config.json, which would
win over the task's own limit, is left out.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.environment import child_environment, gpu_count
from cluster.errors import ClusterError, ConfigError
from cluster.machine import has_bf16
from cluster.model_files import ADAPTER_CONFIG
from training.evaluate.models import base_model
from training.models.source import ModelOrigin

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ALONE = dict.fromkeys(RANK_VARIABLES)  # else, started by a rank, it would wait for the others
LIMITS = ("max_new_tokens", "max_length", "min_new_tokens", "min_length")
GENERATION_CONFIG = "generation_config.json"
PROGRESS_BAR = "%|"
LAST_LINES = 5  # of what the harness said, when it fails

Results = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """The tasks, as the harness takes them: names, or paths of YAML files; and how its prompts are rendered."""

    tasks: Sequence[str]
    as_chat: bool
    limit: int | None = None


def check_tasks(tasks: Sequence[str]) -> list[str]:
    """Return the tasks, paths made absolute. Raises ClusterError without the harness, ConfigError without a file."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ClusterError("--tasks: lm-evaluation-harness is not installed: pip install -e '.[eval]'")
    found = []
    for task in tasks:
        is_file = task.endswith((".yaml", ".yml"))
        if is_file and not Path(task).is_file():
            raise ConfigError(f"--tasks: {task}: no such file; give a YAML file, or a name that `lm-eval ls tasks` has")
        found.append(str(Path(task).resolve()) if is_file else task)
    return found


def run_tasks(request: TaskRequest, origin: ModelOrigin, export: Path, seed: int) -> Results:
    """Return each task's metrics for the base and the tuned model. Raises ClusterError if the harness fails."""
    results: Results = {}
    with TemporaryDirectory(prefix="shardline-tasks-") as temporary:
        folder = Path(temporary)
        with base_folder(origin, folder / "base", seed) as base:
            arguments = {"base": {"pretrained": str(base)}, "tuned": tuned_arguments(export, base, folder / "tuned")}
            for name, values in arguments.items():
                values |= {"tokenizer": str(export.resolve()), "dtype": quick_dtype()}
                for task, metrics in run_harness(request, values, folder / f"results-{name}").items():
                    add(results.setdefault(task, {}), name, metrics)
    return results


def quick_dtype() -> str:
    """Return the type that the harness computes in: the stored one, or fp32 on a CPU that is slow in 16 bits."""
    return "auto" if gpu_count() > 0 or has_bf16() else "float32"


def tuned_arguments(export: Path, base: Path, folder: Path) -> dict[str, str]:
    """Return how the harness is told of the export: a model, or an adapter for the base."""
    if (export / ADAPTER_CONFIG).is_file():
        return {"pretrained": str(base), "peft": str(export.resolve())}
    return {"pretrained": str(linked(export, folder))}


@contextmanager
def base_folder(origin: ModelOrigin, folder: Path, seed: int) -> Iterator[Path]:
    """Yield a folder of the model that the run started from; written anew if it is no folder's as it stands."""
    if origin.folder is not None and not origin.enlarged:
        yield linked(origin.folder, folder)
        return
    base_model(origin, seed).save_pretrained(folder)
    yield folder


def linked(source: Path, folder: Path) -> Path:
    """Return a folder with links to a model's files, and a generation_config.json without limits of length."""
    folder.mkdir()
    for path in source.resolve().iterdir():
        if path.name != GENERATION_CONFIG:
            (folder / path.name).symlink_to(path)
    own = source / GENERATION_CONFIG
    if own.is_file():
        values = json.loads(own.read_text(encoding="utf-8"))
        kept = {key: value for key, value in values.items() if key not in LIMITS}
        (folder / GENERATION_CONFIG).write_text(json.dumps(kept), encoding="utf-8")
    return folder


def run_harness(request: TaskRequest, model: Mapping[str, str], output: Path) -> dict[str, dict[str, Any]]:
    """Run the harness on one model; return the metrics of each task, as its results file has them."""
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--output_path", str(output)]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in model.items())]
    command += ["--tasks", ",".join(request.tasks), "--batch_size", "8"]
    command += ["--apply_chat_template"] * request.as_chat
    command += ["--limit", str(request.limit)] if request.limit else []
    done = subprocess.run(
        command, env=child_environment({**OFFLINE, **ALONE}), capture_output=True, text=True, check=False
    )
    files = sorted(output.rglob("results_*.json"))
    if done.returncode or not files:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip() and PROGRESS_BAR not in line]
        raise ClusterError(
            f"--tasks {' '.join(request.tasks)}: lm-evaluation-harness ended with {done.returncode} on"
            f" {model['pretrained']} (it runs offline: a public task's data must be in the Hub's cache first):\n  "
            + "\n  ".join(said[-LAST_LINES:])
        )
    found: dict[str, dict[str, Any]] = json.loads(files[-1].read_text(encoding="utf-8"))["results"]
    return found


def add(metrics: dict[str, dict[str, float]], name: str, found: Mapping[str, Any]) -> None:
    """Add one model's metrics of a task; the harness writes them as `metric,filter` and `metric_stderr,filter`."""
    for key, value in found.items():
        metric, _, rule = key.partition(",")
        if not rule or not isinstance(value, int | float):
            continue
        label = metric.removesuffix("_stderr") + ("" if rule == "none" else f" ({rule})")
        kind = f"stderr_{name}" if metric.endswith("_stderr") else name
        metrics.setdefault(label, {})[kind] = float(value)
