"""The `model:`, `train:`, `evaluate:` and `export:` sections."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.config_loading import PathValue, Section

ActivationCheckpointing = Literal["none", "selective", "full"]
Precision = Literal["bf16", "fp32"]
Attention = Literal["auto", "varlen", "documents", "sdpa", "eager"]


class NewModel(Section):
    """A model with random weights: any architecture of transformers, under its names there."""

    model_type: str = "llama"
    """The architecture's model_type in transformers: llama, qwen3, gpt2 ..."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Keys of the architecture's configuration; vocabulary size and special tokens come from the tokenizer."""


class ModelConfig(Section):
    """The model to train: pretrained weights from a Hugging Face folder or Hub id, or a new model."""

    path: str | None = None
    """A Hugging Face folder, or a name on the Hub: OWNER/NAME."""
    new: NewModel | None = None
    resize_embeddings: bool = False
    """Add embeddings for tokens that the model lacks, such as ChatML's; each starts as the mean of the others."""

    @model_validator(mode="after")
    def check_one_origin(self) -> Self:
        if (self.path is None) == (self.new is None):
            raise ValueError("give exactly one of 'path' (a Hugging Face folder or Hub id) and 'new'")
        if self.new is not None and self.resize_embeddings:
            raise ValueError("'resize_embeddings' needs a 'path'; a new model already has its tokenizer's tokens")
        return self

    @property
    def may_add_tokens(self) -> bool:
        """Whether the chat template may add tokens to the tokenizer: the model will have embeddings for them."""
        return self.resize_embeddings or self.new is not None


class LoraConfig(Section):
    """Low-rank adapters (LoRA), trained instead of the model's own weights."""

    rank: int = Field(default=16, gt=0)
    """Rank of the adapters' matrices."""
    alpha: float = Field(default=32.0, gt=0)
    """A layer's adapter is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' inputs."""
    target_modules: list[str] | None = None
    """Names of the linear layers that get an adapter, such as q_proj; default: all but the output head. Experts stored
    as one fused tensor, and their routers, are not linear layers: they get none and stay frozen."""


class TrainConfig(Section):
    """How the model is trained."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data; give this or `steps`. Default: 1 epoch."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps; give this or `epochs`."""
    global_batch_rows: int = Field(default=32, gt=0)
    """Rows per optimizer step, over all ranks and accumulation steps. Any number; best is a multiple of ranks x
    `micro_batch_rows`, which leaves no rank without rows."""
    micro_batch_rows: int = Field(default=1, gt=0)
    """Rows per rank in one forward and backward pass."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """The highest learning rate, reached after the warm-up."""
    warmup_fraction: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps during which the learning rate rises from 0 to `learning_rate`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    final_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the last step, as a share of `learning_rate`."""
    weight_decay: float = Field(default=0.01, ge=0)
    """For matrices only; norms, biases and other vectors are not decayed."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's mean of the gradients."""
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of Adam's mean of the squared gradients."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradients' mean, against division by zero."""
    clip_gradient_norm: float | None = Field(default=1.0, gt=0)
    """Larger gradients are scaled down to this norm; null: never."""
    precision: Precision = "bf16"
    """Precision of the weights in forward and backward; master weights and moments are always fp32. CPUs without
    AVX-512, or bf16 on Arm, are many times slower in bf16 than in fp32."""
    deterministic: bool = True
    """Use algorithms on a GPU that give the same bits each time, so that a resumed run is the undisturbed one bit for
    bit. A CPU always does. What it costs on a GPU has not been measured yet."""
    activation_checkpointing: ActivationCheckpointing = "none"
    """What backward computes again instead of keeping it from forward. full: each decoder layer from its input.
    selective: keeps the outputs of matrix products and of attention too, which are slow to compute, and computes the
    rest again. none: nothing. The gradients are the same. true means full, false none."""
    compile: Literal["none", "layers"] = "none"
    """layers: compile each decoder layer's forward and backward with torch.compile, at the first step of each start.
    Takes a C++ compiler on each node and rounds sums otherwise; not with selective `activation_checkpointing`."""
    attention: Attention = "auto"
    """How attention is computed. auto: the fastest way in which the documents of a row, checked on the model itself, do
    not see each other. varlen: FlashAttention for documents of any length, in one call; a GPU and bf16 only. documents:
    PyTorch's attention, without a mask, once for all documents of one length. sdpa, eager: transformers' own functions
    of these names, under a dense mask. They differ by rounding."""
    loss_chunk_tokens: int | None = Field(default=None, gt=0)
    """Trained tokens whose logits are in memory at a time. Fewer take less memory and more time, and round sums
    otherwise; default: as many as make 4 million logits, and at least half the model's width."""
    freeze: list[str] = Field(default_factory=list)
    """Patterns of the names of parameters to freeze, such as 'model.embed_tokens.*'."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the model's own weights."""
    zero_stage: Literal["auto", 1, 2, 3] = "auto"
    """What ZeRO partitions over the ranks: 1: optimizer states; 2: gradients too; 3: weights too. auto: on GPUs the
    lowest stage that is predicted to fit, with states in the host's memory only if none fits without; a resumed run
    keeps the stage it had while that fits. On the CPU: 3. The stages differ by rounding."""
    hpz: bool = False
    """Under stage 3 on several nodes, and where all weights are trained, keep a second copy of the weights, partitioned
    over each node's ranks (hpZ, Wang et al. 2023, arXiv 2306.10209): a step then gathers weights over the network once,
    and otherwise within a node. The steps are the same bit for bit. Worth its memory where `shardline check --nodes`
    shows 3hpZ."""
    deepspeed: PathValue | None = None
    """DeepSpeed configuration template, which sets the stage too; default: the one of `zero_stage` in ds_configs/."""
    save_every_steps: int = Field(default=500, gt=0)
    """Steps between two checkpoints; the last step is always saved."""
    validation_rows: int = Field(default=64, ge=0)
    """Held-out rows to evaluate before each save; 0: none. The checkpoint with the lowest held-out loss is kept."""
    validate_every_steps: int | None = Field(default=None, gt=0)
    """Evaluate the held-out rows after every so many steps too; default: before saves only. Changes no weight."""
    keep_last: int = Field(default=3, gt=0)
    """Number of newest checkpoints to keep; a file named 'keep' in a checkpoint's folder keeps that one too."""
    keep_every_steps: int | None = Field(default=None, gt=0)
    """Keep the checkpoints of every so many steps too; a multiple of `save_every_steps`."""
    save_copy_gb: float | None = Field(default=None, ge=0)
    """Memory per host for copies of its ranks' state, from which checkpoints are written while training continues;
    default: half of the free memory. If the copies do not fit, training waits for each checkpoint."""
    loss_spike_factor: float | None = Field(default=2.0, gt=1)
    """Skip a step whose loss exceeds this many times the recent median, and the median by 1 nat; null: never."""
    norm_spike_factor: float | None = Field(default=30.0, gt=1)
    """The same for the gradient norm before clipping; a norm below `clip_gradient_norm` is no spike; null: never."""
    max_skipped_steps: int = Field(default=100, ge=0)
    """Skipped steps, including those excluded by rollbacks, beyond which the run ends."""
    max_rollbacks: int = Field(default=3, ge=0)
    """Rollbacks to an older checkpoint, each after 3 skipped steps in a row, beyond which the run ends."""
    hang_timeout_s: float | None = Field(default=None, gt=0)
    """How long no rank may make progress in a step before it counts as a hang; default: 20 s, or 5 times the median
    step if that is longer."""
    cpu_ranks: int | None = Field(default=None, gt=0)
    """Ranks to start on a machine without a GPU; default: 2, or 1 on a single core."""

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def read_bool(cls, value: object) -> object:
        """Accept true and false, as before there was a choice."""
        return {True: "full", False: "none"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def check_stage(self) -> Self:
        if self.deepspeed is not None and self.zero_stage != "auto":
            raise ValueError("give one of 'zero_stage' and 'deepspeed', not both: a template sets the stage")
        if self.hpz and (self.lora is not None or self.freeze):
            raise ValueError(
                "'hpz' is known to be exact only where all weights are trained: without 'lora' and 'freeze'"
            )
        return self

    @model_validator(mode="after")
    def check_compile(self) -> Self:
        if self.compile == "layers" and self.activation_checkpointing == "selective":
            raise ValueError(
                "'compile: layers' leaves nothing of a layer for 'activation_checkpointing: selective' to keep; set"
                " full or none"
            )
        return self

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
                "give one of 'freeze' and 'lora', not both: 'lora' already freezes all of the model's own weights"
            )
        return self


class EvaluateConfig(Section):
    """What `shardline evaluate` measures."""

    rows: int | None = Field(default=None, gt=0)
    """Held-out rows to score; default: all."""
    samples: int = Field(default=20, ge=0)
    """Held-out prompts that both models answer, spread evenly over the held-out rows; 0: none."""
    sample_tokens: int = Field(default=96, gt=0)
    """Longest answer, in tokens."""
    classified: int = Field(default=200, ge=0)
    """Held-out documents whose label both models choose, if the replies are few short labels; 0: none."""
    probed_rows: int = Field(default=2000, ge=0)
    """Rows of the training split in which names, words for groups and private data are counted; 0: none."""


class ExportConfig(Section):
    """How weights are exported."""

    dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of the exported weights."""
    lora: Literal["merged", "adapter"] = "merged"
    """Merge low-rank adapters into the model's weights, or export them alone, for peft to load onto `model.path`."""
    shard_bytes: int = Field(default=5 * 10**9, gt=0)
    """Largest size of one weights file, in bytes."""
