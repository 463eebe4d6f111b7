"""The model a run starts from: its configuration, tokenizer and initial weights, from a folder, the Hub, or new."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from cluster.disk.atomic_files import sha256_of
from cluster.errors import ConfigError, DataError
from cluster.model_files import found_folder, reason_of
from data_prep.shards import Manifest, template_digest, tokenizer_digest
from data_prep.shards.tokenizer_files import add_tokens, open_tokenizer, vocabulary_size
from training.config import LoraConfig, ModelConfig, NewModel, TrainConfig
from training.models.config_keys import keys_in_code, known_keys, unknown_keys_text
from training.models.initial_weights import PretrainedWeights, Weights
from training.models.new_weights import NewWeights
from training.models.resized_embeddings import ResizedWeights, Shapes, enlarged_shapes, resized_config
from training.models.stop_tokens import special_ids
from training.models.stored_tensors import weight_paths
from training.models.trainable import LoraWeights, base_name, choose_trained
from training.models.untrainable import check_architecture, check_trainable

POSITIONS = "max_position_embeddings"


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """What a run starts from. `folder` is None for a new model.

    `stored_vocab_size` is the number of embeddings in the folder's weights, if the run's model has more.
    """

    config: PretrainedConfig
    tokenizer: Any
    folder: Path | None
    stored_vocab_size: int | None = None

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model on the meta device: shapes without data."""
        return skeleton_of(self.config)

    @cached_property
    def stored_skeleton(self) -> PreTrainedModel:
        """The same, with as many embeddings as the folder's weights have."""
        if self.stored_vocab_size is None:
            return self.skeleton
        return skeleton_of(resized_config(self.config, self.stored_vocab_size))

    @cached_property
    def enlarged(self) -> Shapes:
        """The shapes in the folder of the parameters that have more rows in the run's model, by name."""
        return {} if self.stored_vocab_size is None else enlarged_shapes(self.stored_skeleton, self.skeleton)

    def identity(self) -> dict[str, Any]:
        """Return what two attempts at one run must share, beyond the plan."""
        if self.stored_vocab_size is None:
            return {}
        return {"model.resize_embeddings": [self.stored_vocab_size, self.config.get_text_config().vocab_size]}

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    def trained_skeleton(self, train: TrainConfig) -> PreTrainedModel:
        """Return the model on the meta device as it is trained: with LoRA adapters, and with frozen parameters."""
        model = skeleton_of(self.config)
        with torch.device("meta"):
            choose_trained(model, train)
        self.check_new_rows_are_trained(model)
        return model

    def check_new_rows_are_trained(self, model: PreTrainedModel) -> None:
        """Raise ConfigError if new tokens, other than padding, would all keep the same embedding."""
        if self.stored_vocab_size is None:
            return
        new = {i for i in self.tokenizer.get_vocab().values() if i >= self.stored_vocab_size}
        trained = {base_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
        if new - {self.tokenizer.pad_token_id} and not trained >= self.enlarged.keys():
            raise ConfigError(
                "model.resize_embeddings: train.lora or train.freeze would freeze the new tokens' embeddings, which "
                "all start the same, so the model could not tell them apart; use `chat_template: plain`, which needs "
                "no new tokens, or train all weights"
            )

    def trained_parameters(self, train: TrainConfig) -> int:
        """Return the number of trained parameters. Raises ConfigError if `train` names parameters the model lacks."""
        return sum(p.numel() for p in self.trained_skeleton(train).parameters() if p.requires_grad)

    def first_weights(self, seed: int, lora: LoraConfig | None = None) -> Weights:
        if lora is not None:
            return LoraWeights(self.first_weights(seed), seed)
        if self.folder is None:
            return NewWeights(self.skeleton, seed)
        weights = PretrainedWeights(self.folder, self.stored_skeleton)
        return ResizedWeights(weights, self.enlarged) if self.enlarged else weights

    @torch.no_grad()
    def enlarge(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        """Add to a model that transformers loaded from the folder the new rows that the run started with."""
        if self.enlarged:
            model.resize_token_embeddings(self.config.get_text_config().vocab_size, mean_resizing=False)
            weights = self.first_weights(seed)
            for name in self.enlarged:
                parameter = model.get_parameter(name)
                values = weights.part(name, tuple(parameter.shape), 0, parameter.numel())
                parameter.copy_(values.reshape(parameter.shape))
        return model

    def source_digest(self, seed: int) -> str:
        """Return a sha256 of what the initial weights follow from: the files, or a new model's configuration and seed.

        A checkpoint does not hold the frozen weights, so resuming needs the very same source.
        """
        if self.folder is None:
            values = {key: value for key, value in self.config.to_dict().items() if key != "transformers_version"}
            return hashlib.sha256(json.dumps([values, seed], sort_keys=True, default=str).encode()).hexdigest()
        digests = [sha256_of(path) for path in weight_paths(self.folder)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def skeleton_of(config: PretrainedConfig) -> PreTrainedModel:
    """Return a model of this configuration on the meta device, without memory for its weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def find_model(model: ModelConfig, shards: Path, manifest: Manifest, *, weights: bool = True) -> ModelOrigin:
    """Return what the run starts from; without `weights`, the weights need not be here and are not fetched.

    Raises ConfigError if the model cannot be trained or does not fit the rows, DataError if the shards were made with
    another tokenizer.
    """
    tokenizer = open_tokenizer(shards / "tokenizer")
    check_template(tokenizer, manifest, shards)
    if model.new is not None:
        return ModelOrigin(config=new_config(model.new, tokenizer, manifest), tokenizer=tokenizer, folder=None)
    folder = found_folder(model.path or "", weights=weights)
    config = read_config(folder, weights=weights)
    check_tokenizer(open_tokenizer(folder), manifest, folder)
    check_length(config, manifest.row_tokens)
    # the shards' copy is the same tokenizer, with the chat template that the rows were made with
    return fitted(model, config, tokenizer, folder, manifest.largest_id)


def look_at_model(model: ModelConfig, tokenizer: Any, row_tokens: int) -> ModelOrigin:
    """Return what a run with a `model.path` will start from, as far as it is known before there are shards.

    `tokenizer` has the chat template and the added tokens that the rows will be made with. Raises ConfigError if the
    model cannot be trained or does not fit them.
    """
    folder = found_folder(model.path or "")
    config = read_config(folder, weights=Path(model.path or "").expanduser().is_dir())
    check_length(config, row_tokens)
    return fitted(model, config, tokenizer, folder, None)


def read_config(folder: Path, *, weights: bool) -> PretrainedConfig:
    """Return a folder's configuration. Raises ConfigError unless it is that of a trainable causal language model."""
    check_trainable(folder, weights=weights)
    check_architecture(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        skeleton = skeleton_of(config)
    except (OSError, ValueError, TypeError, ImportError, StrictDataclassError) as error:
        raise ConfigError(f"model.path: {folder}: transformers cannot build this model: {reason_of(error)}") from None
    if getattr(config, "is_decoder", None) is False and "is_decoder" in keys_in_code(type(skeleton)):
        raise ConfigError(
            f"model.path: {folder} holds a {config.model_type} that is an encoder (is_decoder is false), in which each "
            "token sees later ones; name a causal language model"
        )
    check_layers_stay(config)
    return config


def check_layers_stay(config: PretrainedConfig) -> None:
    """Raise ConfigError for a model that drops layers at random: ranks that drop different ones would deadlock."""
    if share := getattr(config.get_text_config(), "layerdrop", None):
        raise ConfigError(
            f"model: a {config.model_type} with layerdrop {share} drops layers at random, different ones on each rank, "
            "but all ranks must gather each layer's weights together; set layerdrop to 0 in its configuration"
        )


def fitted(
    model: ModelConfig, config: PretrainedConfig, tokenizer: Any, folder: Path, largest_id: int | None
) -> ModelOrigin:
    """Return the origin with an embedding for every id in use. Raises ConfigError if some are missing and not wanted.

    A tokenizer may have more ids than the model has embeddings, as Gemma 3's does, if no row, no special token and no
    chat template uses them.
    """
    embeddings = config.get_text_config().vocab_size
    used = max(special_ids(tokenizer) | {largest_id or 0})
    if used < embeddings:
        return ModelOrigin(config=config, tokenizer=tokenizer, folder=folder)
    if not model.resize_embeddings:
        raise ConfigError(
            f"model.path: {folder} has {embeddings:,} embeddings, for ids up to {embeddings - 1:,}, but its "
            f"tokenizer uses id {used:,} ({tokenizer.convert_ids_to_tokens(used)!r}); if this token should be new, "
            "set `resize_embeddings: true` under model, else use the tokenizer that belongs to the model"
        )
    vocab_size = max(used + 1, vocabulary_size(tokenizer))
    return ModelOrigin(
        config=resized_config(config, vocab_size), tokenizer=tokenizer, folder=folder, stored_vocab_size=embeddings
    )


def new_config(new: NewModel, tokenizer: Any, manifest: Manifest) -> PretrainedConfig:
    """Return the configuration of a new model. Raises ConfigError if it sets what the tokenizer decides."""
    fixed = {
        "vocab_size": manifest.vocab_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,  # torch never trains the embedding of the padding token, which may be the stop token too
    }
    clash = fixed.keys() & new.config.keys()
    if clash:
        raise ConfigError(f"model.new.config: {', '.join(sorted(clash))}: set by the tokenizer; remove from the YAML")
    config = made_config(new, manifest.row_tokens, fixed)
    check_layers_stay(config)
    check_length(config, manifest.row_tokens)
    return config


def made_config(new: NewModel, row_tokens: int, fixed: Mapping[str, Any]) -> PretrainedConfig:
    """Return a configuration that a model can be built from. Raises ConfigError if it has none."""
    try:
        default = AutoConfig.for_model(new.model_type)
        check_keys(new, default)
        positions = default.attribute_map.get(POSITIONS, POSITIONS)  # gpt2 calls them n_positions
        given = {default.attribute_map.get(key, key): value for key, value in new.config.items()}
        config = AutoConfig.for_model(new.model_type, **{positions: row_tokens, **given, **fixed})
        skeleton_of(config)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError(f"model.new: {' '.join(str(error).split())[:300]}") from None
    return config


def check_keys(new: NewModel, default: PretrainedConfig) -> None:
    """Raise ConfigError for keys that transformers would accept and never read."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(default), None)
    if model_class is None:
        return  # not a causal language model: building it fails with the reason
    unknown = unknown_keys_text(new.config, known_keys(default, model_class))
    if unknown:
        raise ConfigError(f"model.new.config: a {new.model_type} has no {unknown}")


def check_tokenizer(tokenizer: Any, manifest: Manifest, folder: Path) -> None:
    """Raise DataError unless the shards were made with the model's tokenizer and the tokens added to it."""
    add_tokens(tokenizer, manifest.added_tokens)
    found = tokenizer_digest(tokenizer)
    if found != manifest.tokenizer_digest:
        raise DataError(
            f"the shards were made with another tokenizer (digest {manifest.tokenizer_digest[:12]}) than that of"
            f" {folder} ({found[:12]}); run `shardline prepare RUN.yaml` with this model"
        )


def check_template(tokenizer: Any, manifest: Manifest, shards: Path) -> None:
    """Raise DataError unless the shards' tokenizer still has the chat template that the conversations were made with.

    It is what an export writes and what generation asks with, so a model would be used in a form it was not trained in.
    """
    if manifest.conversational and template_digest(tokenizer.chat_template) != manifest.template_digest:
        raise DataError(
            f"{shards / 'tokenizer'}: its chat template is not the one that the rows were made with, which an export "
            "would write; put it back, or set data.chat_template and run `shardline prepare RUN.yaml` again"
        )


def check_length(config: PretrainedConfig, row_tokens: int) -> None:
    """Raise ConfigError if rows are longer than the model's positions."""
    longest = getattr(config.get_text_config(), POSITIONS, None)
    if longest is not None and row_tokens > longest:
        raise ConfigError(
            f"data.row_tokens: {row_tokens} is longer than the model's {longest} positions;"
            " lower it and run `shardline prepare RUN.yaml` again"
        )
