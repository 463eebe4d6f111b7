"""Both models over the ranks of a world, each partitioned by ZeRO-3, for models that do not fit one device.

The run's own engine scores them. All parameters but one are frozen, so that there are neither gradients nor optimizer
states, only each rank's part of the weights in the run's precision. Every rank answers the same prompts with the same
likeliest tokens, so all call the model equally often, which is what ZeRO-3 needs (transformers' `synced_gpus` does the
same for ranks whose prompts differ). Each layer's weights are gathered for every token of a reply: slow, but it runs
wherever training ran; `device_map` would need all of the model on one host.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from transformers import PretrainedConfig

from cluster.errors import ConfigError
from cluster.model_files import ADAPTER_CONFIG
from cluster.network.world import World
from training.config import TrainConfig
from training.evaluate.evaluate import Request
from training.evaluate.models import Opened, Scored
from training.evaluate.scoring import Scores
from training.generate.loading import keep_only_token_ids
from training.models.initial_weights import PretrainedWeights, Weights
from training.models.source import read_config, skeleton_of
from training.plan import make_plan
from training.step.batches import micro_batch
from training.zero.ds_config import deepspeed_config, read_template, stage_of
from training.zero.engine import ZeroEngine

UNFIXED = {"compile": "none", "attention": "auto", "loss_chunk_tokens": None}  # as here nothing is trained


class PartitionedModels:
    """Both models over all ranks, one at a time. Collective."""

    def __init__(self, request: Request, train: TrainConfig, world: World) -> None:
        """Raises ConfigError for an export that is only an adapter."""
        export = request.export
        if (export / ADAPTER_CONFIG).is_file():
            raise ConfigError(
                f"{export}: an adapter alone cannot be scored over ranks; set `export.lora: merged` and run"
                " `shardline export RUN.yaml` again, or evaluate in one process, without --ranks"
            )
        self.request, self.train, self.world = request, train, world

    @property
    def world_size(self) -> int:
        return self.world.size

    @contextmanager
    def tuned(self) -> Iterator[Opened]:
        export = self.request.export
        config = read_config(export, weights=True)
        with self.opened(config, PretrainedWeights(export, skeleton_of(config))) as model:
            yield model

    @contextmanager
    def base(self) -> Iterator[Opened]:
        origin = self.request.origin
        with self.opened(origin.config, origin.first_weights(self.request.seed)) as model:
            yield model

    @contextmanager
    def opened(self, config: PretrainedConfig, weights: Weights) -> Iterator[Opened]:
        engine = self.engine_of(config)
        engine.fill_frozen(weights)
        engine.start_from(weights)
        engine.set_training(False)
        engine.model.isolate(engine.model.ways()[-1])  # attention of the model's own, as `generate` needs it
        keep_only_token_ids(engine.module)
        yield engine.module, lambda: self.scored(engine)
        engine.deepspeed.destroy()
        gc.collect()

    def engine_of(self, config: PretrainedConfig) -> ZeroEngine:
        """Return the engine with an empty model, of which a single small parameter is trained."""
        names = [name for name, _ in sorted(skeleton_of(config).named_parameters(), key=lambda item: item[1].numel())]
        frozen = [glob_of(name) for name in names[1:]]
        rows = self.world.size
        changes = {"lora": None, "freeze": frozen, "global_batch_rows": rows, "micro_batch_rows": 1}
        train = self.train.model_copy(update={**changes, "activation_checkpointing": "none", **UNFIXED})
        template = read_template(train.deepspeed)
        if stage_of(template) != 3:
            template = read_template(None)
        count = sum(parameter.numel() for parameter in skeleton_of(config).parameters())
        manifest, seed = self.request.manifest, self.request.seed
        plan = make_plan(train, manifest, parameters=count, world_size=self.world.size, seed=seed)
        return ZeroEngine(config, train, plan, deepspeed_config(template, train, plan), self.world)

    def scored(self, engine: ZeroEngine) -> Scored:
        """Return the model as training calls it, with the documents of a row isolated. Collective."""
        engine.check_isolation([micro_batch(self.request.reader().rows([0]), index=0)])
        engine.set_training(False)  # the check switches back to training
        return Scored(
            packed=engine.model,
            passes=lambda batch: engine.forward_passes([batch]),
            rank=self.world.rank,
            world_size=self.world.size,
            gather=self.gathered,
        )

    def gathered(self, mine: Scores) -> Sequence[Scores]:
        """Return the scores of all ranks. Collective."""
        everyone: list[Any] = [None] * self.world.size
        dist.all_gather_object(everyone, mine)
        return everyone


def glob_of(name: str) -> str:
    """Return a pattern that only this name matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
