"""The `model:`, `train:`, `evaluate:` and `export:` sections."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cluster.config_loading import PathValue, Section


class NewModel(Section):
    """A model made from nothing: any of transformers' architectures, by its own names."""

    model_type: str = "llama"
    """What transformers calls the architecture: llama, qwen3, gpt2 ..."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Keys of that architecture's configuration; vocabulary and special tokens come from the tokenizer."""


class ModelConfig(Section):
    """Where the model comes from: a Hugging Face folder or hub id, or nothing."""

    path: str | None = None
    new: NewModel | None = None
    resize_embeddings: bool = False
    """Give the model embeddings for tokens beyond its own, such as those of ChatML: the mean of those that it has."""

    @model_validator(mode="after")
    def check_one_origin(self) -> Self:
        if (self.path is None) == (self.new is None):
            raise ValueError("give exactly one of 'path' (a Hugging Face folder or hub id) and 'new'")
        if self.new is not None and self.resize_embeddings:
            raise ValueError("'resize_embeddings' is for a model with a 'path'; a new one has all its tokenizer's")
        return self

    @property
    def may_add_tokens(self) -> bool:
        """Whether the chat template may need tokens that the tokenizer has not: the model will have them."""
        return self.resize_embeddings or self.new is not None


class LoraConfig(Section):
    """Low-rank additions that are trained in the model's place."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0)
    """Scale: a layer's addition counts alpha / rank times."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """On what goes into the additions."""
    target_modules: list[str] | None = None
    """Names of the linear layers that get one, such as q_proj; default: all but the output head. Experts that a model
    keeps in one tensor, and their routers, are no linear layers: they get none and stay as they are."""


class TrainConfig(Section):
    """How the model is trained."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; or give `steps`. Default: 1 epoch."""
    steps: int | None = Field(default=None, gt=0)
    global_batch_rows: int = Field(default=32, gt=0)
    """Rows in a step, over all ranks and accumulation steps."""
    micro_batch_rows: int = Field(default=1, gt=0)
    """Rows that a rank takes at a time."""
    learning_rate: float = Field(default=2e-5, gt=0)
    warmup_fraction: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """Where the schedule ends, as a share of `learning_rate`."""
    weight_decay: float = Field(default=0.01, ge=0)
    """For matrices; norms, biases and other vectors do not decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    clip_gradient_norm: float | None = Field(default=1.0, gt=0)
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the weights in forward and backward; master weights and moments are fp32."""
    activation_checkpointing: bool = False
    """Compute each layer's activations again in backward instead of keeping them."""
    freeze: list[str] = Field(default_factory=list)
    """Patterns of parameter names that are not trained, such as 'model.embed_tokens.*'."""
    lora: LoraConfig | None = None
    """Train low-rank additions to the layers instead of the model's own weights."""
    deepspeed: PathValue | None = None
    """DeepSpeed template; default: ds_configs/zero3.json."""
    save_every_steps: int = Field(default=500, gt=0)
    validation_rows: int = Field(default=64, ge=0)
    """Held-out rows whose loss is taken before each save; 0: none. The checkpoint with the lowest loss stays."""
    keep_last: int = Field(default=3, gt=0)
    """Newest checkpoints that stay; a file named 'keep' in a checkpoint's folder makes it stay as well."""
    keep_every_steps: int | None = Field(default=None, gt=0)
    """Checkpoints of these steps stay too; a multiple of `save_every_steps`."""
    save_copy_gb: float | None = Field(default=None, ge=0)
    """Memory that a host may give to the copy of its ranks' state, which is written while training goes on; default:
    half of what is free. Too little, and training waits while a checkpoint is written."""
    loss_spike_factor: float | None = Field(default=2.0, gt=1)
    """A step whose loss is so many times the median of recent ones, and 1 nat above it, is skipped; null: never."""
    norm_spike_factor: float | None = Field(default=30.0, gt=1)
    """The same for its gradient norm before clipping; one below `clip_gradient_norm` is no spike; null: never."""
    max_skipped_steps: int = Field(default=100, ge=0)
    """Skipped steps, those of rollbacks included, after which the run ends for a person to look."""
    max_rollbacks: int = Field(default=3, ge=0)
    """Returns to an older checkpoint, each after 3 skipped steps in a row, after which the run ends."""
    hang_timeout_s: float | None = Field(default=None, gt=0)
    """How long all ranks may stand still in a step; default: 20 s, or 5 times the median step if that is longer."""
    cpu_ranks: int | None = Field(default=None, gt=0)
    """Ranks on a machine without a GPU; default: 2, or 1 on a single core."""

    @model_validator(mode="after")
    def check_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give one of 'epochs' and 'steps', not both")
        return self

    @model_validator(mode="after")
    def check_kept_steps(self) -> Self:
        if self.keep_every_steps and self.keep_every_steps % self.save_every_steps:
            raise ValueError(
                f"'keep_every_steps' ({self.keep_every_steps}) is not a multiple of 'save_every_steps'"
                f" ({self.save_every_steps})"
            )
        return self

    @model_validator(mode="after")
    def check_trained(self) -> Self:
        if self.freeze and self.lora is not None:
            raise ValueError(
                "give one of 'freeze' and 'lora', not both: with 'lora' all of the model's weights are frozen"
            )
        return self


class EvaluateConfig(Section):
    """What `shardline evaluate` looks at."""

    rows: int | None = Field(default=None, gt=0)
    """Held-out rows that are scored; default: all."""
    samples: int = Field(default=8, ge=0)
    """Held-out prompts that both models answer."""
    sample_tokens: int = Field(default=96, gt=0)
    """Longest answer."""


class ExportConfig(Section):
    """How the weights leave the run."""

    dtype: Literal["bf16", "fp32"] = "bf16"
    lora: Literal["merged", "adapter"] = "merged"
    """Low-rank additions: merged into the model's weights, or alone as a folder that peft puts upon `model.path`."""
    shard_bytes: int = Field(default=5 * 10**9, gt=0)
