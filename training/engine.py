"""DeepSpeed ZeRO-3 around a causal language model: one optimizer step at a time, with an honest loss."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, cast

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.initialization import no_init_weights

from cluster.environment import World
from training import zero3
from training.batches import MicroBatch
from training.config import TrainConfig
from training.loss import StepStats, summed_loss
from training.model import skeleton_of
from training.plan import Plan
from training.weights import Weights, made_buffers

log = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def join_world(world: World) -> None:
    """Start the process group: nccl on GPUs, gloo on CPUs. Collective."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"deepspeed\..*|torch\..*")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # a shared-memory collective that only inference uses; it would be compiled at the start
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    else:
        torch.set_num_threads(1)
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT, verbose=False
    )


def leave_world() -> None:
    """End the process group. Collective."""
    dist.barrier()
    dist.destroy_process_group()


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices decay; norms, biases and other vectors do not."""
    named = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in named if len(getattr(parameter, "ds_shape", parameter.shape)) >= 2]
    vectors = [parameter for parameter in named if len(getattr(parameter, "ds_shape", parameter.shape)) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_model(config: PretrainedConfig, train: TrainConfig, ds_config: dict[str, Any]) -> torch.nn.Module:
    """Build the model with every parameter partitioned as soon as it exists; its weights are filled in later."""
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    # the precision comes from ds_config: DeepSpeed 0.19 takes a dtype that is given for bf16 where there is no fp16
    with deepspeed.zero.Init(config_dict_or_path=ds_config), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()  # part of the initialization that was left out
    if train.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = {type(module) for module in model.modules() if type(module).__name__ in (model._no_split_modules or [])}
    if layers:
        deepspeed.utils.set_z3_leaf_modules(model, list(layers))  # one gather a layer, not one a matrix
    return cast(torch.nn.Module, model)


class Engine:
    """A model, its optimizer and its place in the world. Every method is collective."""

    def __init__(
        self, config: PretrainedConfig, train: TrainConfig, plan: Plan, ds_config: dict[str, Any], world: World
    ) -> None:
        self.plan, self.world = plan, world
        model = build_model(config, train, ds_config)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, train.weight_decay),
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            fused=True,
        )
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
        self.deepspeed.train()
        self.device = torch.device(get_accelerator().current_device_name())
        zero3.create_state(self.optimizer)
        self.restore_buffers(made_buffers(skeleton_of(config)))

    @property
    def module(self) -> torch.nn.Module:
        module: torch.nn.Module = self.deepspeed.module
        return module

    def restore_buffers(self, buffers: dict[str, torch.Tensor]) -> None:
        """Put the model's buffers back as they were made: DeepSpeed casts them with the weights.

        In bf16 the frequencies of rotary positions are off by 1 of 256: long rows would be trained at wrong positions.
        """
        for name, value in buffers.items():
            owner, _, own_name = name.rpartition(".")
            self.module.get_submodule(owner)._buffers[own_name] = value.to(self.device)

    def parts(self, *, writing: bool = False) -> Iterator[zero3.Part]:
        """Yield this rank's part of every parameter, as views that are good until the next part is asked for.

        With `writing`, what is put into the views is kept.
        """
        yield from zero3.local_parts(self.module, self.optimizer, self.world.rank, self.world.size)

    def start_from(self, weights: Weights) -> None:
        """Fill the master weights with a run's first weights."""
        for part in self.parts():
            part.values["master"].copy_(weights.part(part.name, part.shape, part.start, part.stop))
        weights.finish()
        zero3.refresh_weights(self.optimizer)

    def continue_after(self, updates: int) -> None:
        """Go on after so many updates of the weights, from parts that a checkpoint has filled."""
        zero3.set_step(self.optimizer, updates)
        zero3.refresh_weights(self.optimizer)

    def step(self, step: int, batches: Sequence[MicroBatch], trained_tokens: int, learning_rate: float) -> StepStats:
        """Take one optimizer step on this rank's micro batches; `trained_tokens` counts those of the global batch.

        The loss is the sum over the trained tokens of the global batch divided by their number, whatever the number of
        ranks and accumulation steps.
        """
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = learning_rate
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in batches:
            self.seed(step, batch.index)
            loss = self.loss(batch)
            loss_sum += loss.detach()
            # DeepSpeed divides gradients by the number of ranks
            self.deepspeed.backward(loss * (self.world.size / trained_tokens), scale_wrt_gas=False)
            self.deepspeed.step()
        dist.all_reduce(loss_sum)
        return StepStats(
            loss=float(loss_sum) / trained_tokens, gradient_norm=float(self.deepspeed.get_global_grad_norm())
        )

    def loss(self, batch: MicroBatch) -> torch.Tensor:
        """Return the summed loss of a micro batch. No attention mask: positions that restart keep documents apart."""
        ids, positions = batch.input_ids.to(self.device), batch.position_ids.to(self.device)
        logits = self.deepspeed(input_ids=ids, position_ids=positions, use_cache=False).logits
        return summed_loss(logits, ids, batch.loss_mask.to(self.device))

    def all_reduce_max(self, value: int) -> int:
        """Return the largest of all ranks' values."""
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def seed(self, step: int, micro_batch: int) -> None:
        """Seed dropout from (seed, step, micro batch): random state is arithmetic, so a checkpoint carries none."""
        digest = hashlib.sha256(f"{self.plan.seed}/{step}/{micro_batch}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
