"""Weights & Biases: online with a key, or offline as WANDB_MODE says."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.environment import set_defaults
from training.tracking.records import Note, Point, Target

PROJECT = "shardline"


class WeightsAndBiases:
    def __init__(self, target: Target) -> None:
        target.folder.mkdir(parents=True, exist_ok=True)
        set_defaults({"WANDB_DIR": str(target.folder.absolute()), "WANDB_PROJECT": PROJECT})
        import wandb

        settings = wandb.Settings(console="off", disable_git=True, save_code=False, x_disable_stats=True)
        self.run = wandb.init(id=target.id, name=target.name, resume="allow", settings=settings)
        if target.is_configuration_new:
            self.run.config.update(dict(target.configuration), allow_val_change=True)
        # its own counter must grow by each call, and refuses a step that a rollback takes again
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        offline = f"wandb sync {self.run.dir.removesuffix('/files')}"
        self.look = offline if self.run.offline else str(self.run.url)

    def purge(self, step: int, note: int) -> None:
        pass  # it keeps what it has

    def send(self, points: Sequence[Point], notes: Sequence[Note]) -> None:
        for point in points:
            self.run.log({"step": point.step, **point.values})
        for note in notes:
            self.run.log({"step": note.step, "event": note.text})

    def close(self) -> None:
        self.run.finish()


def open_run(target: Target) -> WeightsAndBiases:
    return WeightsAndBiases(target)
