"""Which model: its configuration, tokenizer and first weights, from a folder, the hub, or nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from cluster.errors import ConfigError, DataError
from cluster.files import sha256_of
from data_prep.shards import Manifest, tokenizer_digest
from training.config import LoraConfig, ModelConfig, NewModel, TrainConfig
from training.new_weights import NewWeights
from training.stored_tensors import INDEX, WEIGHTS, weight_files
from training.trained import LoraWeights, choose_trained
from training.weights import PretrainedWeights, Weights

POSITIONS = "max_position_embeddings"
SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model"]


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """What a run starts from. `folder` is None for a model made from nothing."""

    config: PretrainedConfig
    tokenizer: Any
    folder: Path | None

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model without memory for its weights."""
        return skeleton_of(self.config)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    def trained_skeleton(self, train: TrainConfig) -> PreTrainedModel:
        """Return the model as it is trained, without memory: with its low-rank additions, frozen where it is frozen."""
        model = skeleton_of(self.config)
        with torch.device("meta"):
            choose_trained(model, train)
        return model

    def trained_parameters(self, train: TrainConfig) -> int:
        """Return how many parameters are trained. Raises ConfigError if `train` asks for what the model has not."""
        return sum(p.numel() for p in self.trained_skeleton(train).parameters() if p.requires_grad)

    def first_weights(self, seed: int, lora: LoraConfig | None = None) -> Weights:
        if lora is not None:
            return LoraWeights(self.first_weights(seed), seed)
        if self.folder is None:
            return NewWeights(self.skeleton, seed)
        return PretrainedWeights(self.folder, self.skeleton)

    def source_digest(self, seed: int) -> str:
        """Return what the first weights follow from: the sha256 of the files, or of the configuration and the seed.

        A checkpoint without the frozen weights is worth nothing without the very same source.
        """
        if self.folder is None:
            values = {key: value for key, value in self.config.to_dict().items() if key != "transformers_version"}
            return hashlib.sha256(json.dumps([values, seed], sort_keys=True, default=str).encode()).hexdigest()
        digests = [sha256_of(path) for path in weight_files(self.folder)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def skeleton_of(config: PretrainedConfig) -> PreTrainedModel:
    """Return a model of this configuration on the meta device."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def model_folder(path: str) -> Path:
    """Return the local folder of a model, fetching it from the hub where `path` is a hub id."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    try:
        folder = Path(snapshot_download(path, allow_patterns=SMALL_FILES))
        # the index names the files; the hub may hold the same weights in other formats beside them
        wanted = [file.name for file in weight_files(folder)] if (folder / INDEX).is_file() else [WEIGHTS]
        return Path(snapshot_download(path, allow_patterns=[*SMALL_FILES, *wanted]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"model.path: {path!r} is neither a folder here nor a model of the hub ({first_line(error)})"
        ) from None


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def find_model(model: ModelConfig, shards: Path, manifest: Manifest) -> ModelOrigin:
    """Return where the run starts from. Raises DataError if the shards were made with another tokenizer."""
    if model.new is not None:
        tokenizer = open_tokenizer(shards / "tokenizer")
        return ModelOrigin(config=new_config(model.new, tokenizer, manifest), tokenizer=tokenizer, folder=None)
    folder = model_folder(model.path or "")
    check_tokenizer(open_tokenizer(folder), manifest, folder)
    config = open_config(folder)
    check_length(config, manifest)
    # the shards' copy of the tokenizer is this one, with the chat template that the rows were made with
    return ModelOrigin(config=config, tokenizer=open_tokenizer(shards / "tokenizer"), folder=folder)


def open_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: holds no tokenizer that transformers can open: {first_line(error)}") from None


def open_config(folder: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: holds no model that transformers can open: {first_line(error)}") from None


def new_config(new: NewModel, tokenizer: Any, manifest: Manifest) -> PretrainedConfig:
    """Return the configuration of a model made from nothing."""
    fixed = {
        "vocab_size": manifest.vocab_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,  # torch would never train the embedding of a padding token, and it may be the stop token
    }
    clash = fixed.keys() & new.config.keys()
    if clash:
        raise ConfigError(f"model.new.config: {', '.join(sorted(clash))}: come from the tokenizer; remove them")
    try:
        default = AutoConfig.for_model(new.model_type)
        positions = default.attribute_map.get(POSITIONS, POSITIONS)  # gpt2 calls them n_positions
        given = {default.attribute_map.get(key, key): value for key, value in new.config.items()}
        unknown = sorted(given.keys() - default.to_dict().keys())
        if unknown:
            raise ConfigError(f"model.new.config: a {new.model_type} has no {', '.join(unknown)}")
        config = AutoConfig.for_model(new.model_type, **{positions: manifest.row_tokens, **given, **fixed})
        skeleton_of(config)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError(f"model.new: {' '.join(str(error).split())[:300]}") from None
    check_length(config, manifest)
    return config


def check_tokenizer(tokenizer: Any, manifest: Manifest, folder: Path) -> None:
    found = tokenizer_digest(tokenizer)
    if found != manifest.tokenizer_digest:
        raise DataError(
            f"the shards were made with another tokenizer (digest {manifest.tokenizer_digest[:12]}) than that of"
            f" {folder} ({found[:12]}); run `shardline prepare RUN.yaml` with this model"
        )


def check_length(config: PretrainedConfig, manifest: Manifest) -> None:
    longest = getattr(config, POSITIONS, None)
    if longest is not None and manifest.row_tokens > longest:
        raise ConfigError(
            f"data.row_tokens: {manifest.row_tokens} is longer than the model's {longest} positions;"
            " lower it and run `shardline prepare RUN.yaml` again"
        )
