"""The YAML of a run: its sections are defined by the packages that use them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.config_loading import PathValue, Section
from cluster.paths import RunPaths
from cluster.submission.config import ClusterConfig
from data_prep.config import DataConfig
from training.config import EvaluateConfig, ExportConfig, ModelConfig, TrainConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RunConfig(Section):
    """One run: its data, its model, and how it is trained, evaluated and exported."""

    name: str
    """The run's name: letters, digits, `.`, `_` and `-`."""
    folder: PathValue | None = None
    """The folder for everything that the run writes; default: runs/NAME."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides new weights, the order of the rows and dropout."""
    trackers: Literal["auto"] | list[Literal["tensorboard", "wandb", "mlflow", "trackio", "comet"]] = "auto"
    """Where `shardline train` sends the metrics: a list of names, `[]` for none. auto: TensorBoard if it is installed.
    See docs/tracking.md."""
    cluster: ClusterConfig | None = None
    data: DataConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()

    @field_validator("name")
    @classmethod
    def check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            proposed = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "my-run"
            raise ValueError(
                f"{name!r} cannot name a folder and a repository of the Hub: use letters A to Z, digits, '.', '_' and"
                f" '-', a letter or digit first, as in {proposed}"
            )
        return name

    @model_validator(mode="after")
    def check_tokenizer_origin(self) -> Self:
        if self.model.path and self.data.tokenizer:
            raise ValueError("data.tokenizer: a model from 'model.path' brings its own tokenizer; remove this key")
        if self.model.new and not self.data.tokenizer:
            raise ValueError(
                "data.tokenizer: a new model needs one, for example: tokenizer: {train: {vocab_size: 8192}}"
            )
        return self

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.folder or Path("runs") / self.name)

    @property
    def shards(self) -> Path:
        return self.data.folder or self.paths.shards
