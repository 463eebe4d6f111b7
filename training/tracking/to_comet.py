"""Comet: online with a key, or with COMET_START_ONLINE=0 a .zip below COMET_OFFLINE_DIRECTORY for `comet upload`."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.environment import set_defaults
from training.tracking.records import Note, Point, Target

PROJECT = "shardline"


class Comet:
    def __init__(self, target: Target) -> None:
        folder = (target.folder / "comet").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        set_defaults({"COMET_OFFLINE_DIRECTORY": str(folder), "COMET_PROJECT_NAME": PROJECT})
        import comet_ml

        quiet = comet_ml.ExperimentConfig(
            auto_output_logging=False,
            auto_metric_logging=False,
            auto_param_logging=False,
            log_code=False,
            log_graph=False,
            log_git_metadata=False,
            log_git_patch=False,
            log_env_details=False,
            parse_args=False,
            display_summary_level=0,
            name=target.name,
        )
        self.experiment = comet_ml.start(experiment_key=target.id, mode="get_or_create", experiment_config=quiet)
        if target.is_configuration_new:
            self.experiment.log_parameters(dict(target.configuration))
        is_offline = isinstance(self.experiment, comet_ml.OfflineExperiment)
        self.look = f"comet upload {folder}/*.zip" if is_offline else str(self.experiment.url)

    def purge(self, step: int, note: int) -> None:
        pass  # it keeps what it has

    def send(self, points: Sequence[Point], notes: Sequence[Note]) -> None:
        for point in points:
            self.experiment.log_metrics(dict(point.values), step=point.step)
        for note in notes:
            self.experiment.log_other(f"event.{note.number:04d}", note.text)
        self.experiment.flush()

    def close(self) -> None:
        self.experiment.end()


def open_run(target: Target) -> Comet:
    return Comet(target)
