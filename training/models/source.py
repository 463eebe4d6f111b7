"""Which model: its configuration, tokenizer and first weights, from a folder, the hub, or nothing."""

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
from training.models.stored_tensors import weight_files
from training.models.trainable import LoraWeights, base_name, choose_trained
from training.models.untrainable import check_architecture, check_trainable

POSITIONS = "max_position_embeddings"


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """What a run starts from. `folder` is None for a model made from nothing.

    `stored_vocab_size` is the number of embeddings in the folder's weights, where the run's model has more.
    """

    config: PretrainedConfig
    tokenizer: Any
    folder: Path | None
    stored_vocab_size: int | None = None

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model without memory for its weights."""
        return skeleton_of(self.config)

    @cached_property
    def stored_skeleton(self) -> PreTrainedModel:
        """The same with the embeddings that the folder has."""
        if self.stored_vocab_size is None:
            return self.skeleton
        return skeleton_of(resized_config(self.config, self.stored_vocab_size))

    @cached_property
    def enlarged(self) -> Shapes:
        """The shapes in the folder of what has more rows in the run's model, by name."""
        return {} if self.stored_vocab_size is None else enlarged_shapes(self.stored_skeleton, self.skeleton)

    def identity(self) -> dict[str, Any]:
        """Return what two starts of one run must have in common, beyond the plan."""
        if self.stored_vocab_size is None:
            return {}
        return {"model.resize_embeddings": [self.stored_vocab_size, self.config.get_text_config().vocab_size]}

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    def trained_skeleton(self, train: TrainConfig) -> PreTrainedModel:
        """Return the model as it is trained, without memory: with its low-rank additions, frozen where it is frozen."""
        model = skeleton_of(self.config)
        with torch.device("meta"):
            choose_trained(model, train)
        self.check_new_rows_are_trained(model)
        return model

    def check_new_rows_are_trained(self, model: PreTrainedModel) -> None:
        """Raise ConfigError if tokens that are more than padding get embeddings which then stay all the same."""
        if self.stored_vocab_size is None:
            return
        new = {i for i in self.tokenizer.get_vocab().values() if i >= self.stored_vocab_size}
        trained = {base_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
        if new - {self.tokenizer.pad_token_id} and not trained >= self.enlarged.keys():
            raise ConfigError(
                "model.resize_embeddings: the new tokens' embeddings would not be trained, as train.lora or "
                "train.freeze leaves them as they are, so the model could not tell one from another; use "
                "`chat_template: plain`, which needs no new tokens, or train all weights"
            )

    def trained_parameters(self, train: TrainConfig) -> int:
        """Return how many parameters are trained. Raises ConfigError if `train` asks for what the model has not."""
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
        """Give a model that transformers loaded from the folder the new rows that the run began with."""
        if self.enlarged:
            model.resize_token_embeddings(self.config.get_text_config().vocab_size, mean_resizing=False)
            weights = self.first_weights(seed)
            for name in self.enlarged:
                parameter = model.get_parameter(name)
                values = weights.part(name, tuple(parameter.shape), 0, parameter.numel())
                parameter.copy_(values.reshape(parameter.shape))
        return model

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


def find_model(model: ModelConfig, shards: Path, manifest: Manifest, *, weights: bool = True) -> ModelOrigin:
    """Return where the run starts from; without `weights` they need not be here, and are not fetched.

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
    # the shards' copy of the tokenizer is this one, with the chat template that the rows were made with
    return fitted(model, config, tokenizer, folder, manifest.largest_id)


def look_at_model(model: ModelConfig, tokenizer: Any, row_tokens: int) -> ModelOrigin:
    """Return where a run with a `model.path` will start from, by what can be known before there are shards.

    `tokenizer` has the template and the tokens that the rows will be made with. Raises ConfigError.
    """
    folder = found_folder(model.path or "")
    config = read_config(folder, weights=Path(model.path or "").expanduser().is_dir())
    check_length(config, row_tokens)
    return fitted(model, config, tokenizer, folder, None)


def read_config(folder: Path, *, weights: bool) -> PretrainedConfig:
    """Return a folder's configuration. Raises ConfigError unless it is of a causal model that can be trained."""
    check_trainable(folder, weights=weights)
    check_architecture(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        skeleton = skeleton_of(config)
    except (OSError, ValueError, TypeError, ImportError, StrictDataclassError) as error:
        raise ConfigError(f"model.path: {folder}: transformers cannot make this model: {reason_of(error)}") from None
    if getattr(config, "is_decoder", None) is False and "is_decoder" in keys_in_code(type(skeleton)):
        raise ConfigError(
            f"model.path: {folder} holds a {config.model_type} that is an encoder (is_decoder is false): each of its "
            "tokens sees those after it; name a causal language model"
        )
    check_layers_stay(config)
    return config


def check_layers_stay(config: PretrainedConfig) -> None:
    """Raise ConfigError for a model that leaves out layers by chance: ranks that leave out others wait for ever."""
    if share := getattr(config.get_text_config(), "layerdrop", None):
        raise ConfigError(
            f"model: a {config.model_type} with layerdrop {share} leaves out layers by chance, each rank others, and "
            "all need every layer's weights at once; set layerdrop to 0 in its configuration"
        )


def fitted(
    model: ModelConfig, config: PretrainedConfig, tokenizer: Any, folder: Path, largest_id: int | None
) -> ModelOrigin:
    """Return the origin with an embedding for each id that is used. Raises ConfigError if that is not allowed.

    A tokenizer may have more ids than the model, as those of Gemma 3 have, as long as no row, no special token and no
    template uses them.
    """
    embeddings = config.get_text_config().vocab_size
    used = max(special_ids(tokenizer) | {largest_id or 0})
    if used < embeddings:
        return ModelOrigin(config=config, tokenizer=tokenizer, folder=folder)
    if not model.resize_embeddings:
        raise ConfigError(
            f"model.path: {folder} has {embeddings:,} embeddings, for the ids up to {embeddings - 1:,}, and its "
            f"tokenizer uses id {used:,} ({tokenizer.convert_ids_to_tokens(used)!r}); write `resize_embeddings: true` "
            "below model if this token is meant to be new, or take the tokenizer that belongs to the model"
        )
    vocab_size = max(used + 1, vocabulary_size(tokenizer))
    return ModelOrigin(
        config=resized_config(config, vocab_size), tokenizer=tokenizer, folder=folder, stored_vocab_size=embeddings
    )


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
    config = made_config(new, manifest.row_tokens, fixed)
    check_layers_stay(config)
    check_length(config, manifest.row_tokens)
    return config


def made_config(new: NewModel, row_tokens: int, fixed: Mapping[str, Any]) -> PretrainedConfig:
    """Return a configuration of which a model can be made. Raises ConfigError."""
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
    """Raise ConfigError for keys that would be kept and mean nothing."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(default), None)
    if model_class is None:
        return  # making the model tells what is wrong
    unknown = unknown_keys_text(new.config, known_keys(default, model_class))
    if unknown:
        raise ConfigError(f"model.new.config: a {new.model_type} has no {unknown}")


def check_tokenizer(tokenizer: Any, manifest: Manifest, folder: Path) -> None:
    """Raise DataError unless the model's tokenizer, with the tokens that preparing added, made the shards."""
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
    longest = getattr(config.get_text_config(), POSITIONS, None)
    if longest is not None and row_tokens > longest:
        raise ConfigError(
            f"data.row_tokens: {row_tokens} is longer than the model's {longest} positions;"
            " lower it and run `shardline prepare RUN.yaml` again"
        )
