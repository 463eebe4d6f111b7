"""MLflow: the server that MLFLOW_TRACKING_URI names, else a SQLite file in the run's folder.

A metric is stored by run, name, step, time and value, and one that is there already is not stored again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from cluster.environment import set_defaults
from training.tracking.records import Note, Point, Target

EXPERIMENT = "shardline"
ID_TAG = "shardline.id"
MOST_METRICS, MOST_PARAMS = 1000, 100  # of one request
MOST_TEXT = 5000  # characters of a tag or parameter


class MLflow:
    def __init__(self, target: Target) -> None:
        target.folder.mkdir(parents=True, exist_ok=True)
        database = target.folder.absolute() / "mlflow.db"
        set_defaults(
            {
                "MLFLOW_TRACKING_URI": f"sqlite:///{database}",
                "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
                "MLFLOW_DISABLE_TELEMETRY": "true",
            }
        )
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME
        from mlflow.tracking import MlflowClient, get_tracking_uri

        self.client = MlflowClient()
        uri = str(get_tracking_uri())
        self.look = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else uri
        self.run_id = self.found_or_made(target, str(MLFLOW_EXPERIMENT_NAME.get()), is_local=str(database) in uri)
        self.client.update_run(self.run_id, status="RUNNING")
        if target.is_configuration_new:
            self.send_configuration(target)

    def found_or_made(self, target: Target, experiment: str, *, is_local: bool) -> str:
        """Return MLflow's id of the run: it gives the ids itself, so ours is a tag."""
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            artifacts = str(target.folder.absolute() / "mlflow-artifacts") if is_local else None
            experiment_id = self.client.create_experiment(experiment, artifact_location=artifacts)
        else:
            experiment_id = found.experiment_id
        runs = self.client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{target.id}'")
        if runs:
            return str(runs[0].info.run_id)
        run = self.client.create_run(experiment_id, tags={ID_TAG: target.id}, run_name=target.name)
        return str(run.info.run_id)

    def send_configuration(self, target: Target) -> None:
        """Store the configuration as parameters. These never change in MLflow: a value that did becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = self.client.get_run(self.run_id).data.params
        values = {key: str(value)[:MOST_TEXT] for key, value in target.configuration.items()}
        params = [Param(key, value) for key, value in values.items() if key not in known]
        tags = [RunTag(f"changed.{key}", value) for key, value in values.items() if known.get(key, value) != value]
        for some in chunks(params, MOST_PARAMS):
            self.client.log_batch(self.run_id, params=some)
        for some in chunks(tags, MOST_PARAMS):
            self.client.log_batch(self.run_id, tags=some)

    def purge(self, step: int, note: int) -> None:
        pass  # it keeps what it has

    def send(self, points: Sequence[Point], notes: Sequence[Note]) -> None:
        from mlflow.entities import Metric, RunTag

        metrics = [
            Metric(name, float(value), point.time_ms, point.step)
            for point in points
            for name, value in point.values.items()
        ]
        tags = [RunTag(f"event.{note.number:04d}", note.text[:MOST_TEXT]) for note in notes]
        for some in chunks(metrics, MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=some)
        for some in chunks(tags, MOST_PARAMS):
            self.client.log_batch(self.run_id, tags=some)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


def chunks(items: Sequence[Any], most: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, most)):
        yield some


def open_run(target: Target) -> MLflow:
    return MLflow(target)
