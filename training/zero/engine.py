"""DeepSpeed around a causal language model: one optimizer step at a time, with an honest loss."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.initialization import no_init_weights

from cluster.environment import World
from training.config import TrainConfig
from training.models.buffers import made_buffers, persistent_buffers, put_buffers, stored_buffers
from training.models.initial_weights import Weights
from training.models.new_weights import layer_names
from training.models.source import skeleton_of
from training.models.trainable import choose_trained
from training.plan import Plan
from training.step.batches import MicroBatch, nothing_of
from training.step.isolation import IsolationCheck, check_isolation
from training.step.loss import StepStats
from training.step.packed_model import Isolation, Loss, PackedModel
from training.zero.ds_config import stage_of
from training.zero.nvme import nvme_folder, require_async_io, take_nvme
from training.zero.partitions import MOMENTS, Partition, Sharding, Slot, frozen_parameters
from training.zero.zero3 import Stage3
from training.zero.zero12 import Stage12

log = logging.getLogger(__name__)

# the watchdog ends ranks that stand still, and says why, long before; this ends those that it has lost sight of. It is
# longer than the watchdog lets a rank load or save, since the others wait for that one in a collective
COLLECTIVE_TIMEOUT = timedelta(minutes=40)


def join_world(world: World) -> None:
    """Start the process group: nccl on GPUs, gloo on CPUs. Collective.

    Raises ConnectionError, which is no ShardlineError, if the port is taken: the next start has another one.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"deepspeed\..*|torch\..*")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # a shared-memory collective that only inference uses; it would be compiled at the start
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    else:
        torch.set_num_threads(1)
    try:
        deepspeed.init_distributed(
            dist_backend="nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT, verbose=False
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        host, port = world.master
        raise ConnectionError(
            f"port {port} of {host}, where the ranks were to meet, is in use by another program; start the run again:"
            " it then takes another port (whoever sets MASTER_PORT must choose another one)"
        ) from None


@contextmanager
def without_compiler() -> Iterator[None]:
    """Leave alone what is marked to be compiled.

    DeepSpeed imports its Muon optimizer, which no run here uses, when it starts, and that is marked: torch's whole
    compiler would be loaded, for a third of the time until the first step.
    """
    compiling = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiling


def leave_world() -> None:
    """End the process group. Collective."""
    dist.barrier()
    dist.destroy_process_group()


def shape_of(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Return a parameter's whole shape, also where ZeRO-3 has left only a part of it here."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices decay; norms, biases and other vectors do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if len(shape_of(parameter)) >= 2]
    vectors = [parameter for parameter in trained if len(shape_of(parameter)) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def dtype_of(train: TrainConfig) -> torch.dtype:
    """Return the precision of the weights in forward and backward."""
    return torch.bfloat16 if train.precision == "bf16" else torch.float32


def build_model(config: PretrainedConfig, train: TrainConfig, ds_config: dict[str, Any]) -> torch.nn.Module:
    """Build the model; its weights are filled in later. In ZeRO-3 a parameter is partitioned as soon as it exists."""
    partitioned = stage_of(ds_config) == 3
    # the precision comes from ds_config: DeepSpeed 0.19 takes a dtype that is given for bf16 where there is no fp16
    with deepspeed.zero.Init(config_dict_or_path=ds_config, enabled=partitioned), no_init_weights():
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype_of(train))
    model.tie_weights()  # part of the initialization that was left out
    choose_trained(model, train)
    if train.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if partitioned:
        for layer in layers_after_trained(model):
            deepspeed.utils.set_z3_leaf_module(layer, True)  # one gather a layer, not one a matrix
    return cast(torch.nn.Module, model)


def layers_after_trained(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder layers with something trained before them.

    A leaf module whose input needs no gradient loses its weights in backward (DeepSpeed 0.19).
    """
    names = layer_names(model)
    first = next(number for number, parameter in enumerate(model.parameters()) if parameter.requires_grad)
    before = {name for number, (name, _) in enumerate(model.named_parameters()) if number <= first}
    return [model.get_submodule(name) for name in names if not any(n.startswith(f"{name}.") for n in before)]


def give_back_memory() -> None:
    """Give the memory back to the system that building the model has freed: glibc keeps pieces of less than 32 MB.

    Every parameter was whole for a moment before it was partitioned, and its part alone before all were put together.
    """
    ctypes.CDLL(None).malloc_trim(0)


def sharding_of(stage: int, module: torch.nn.Module, optimizer: Any, world: World) -> Sharding:
    """Return the adapter to the optimizer that DeepSpeed builds for a ZeRO stage."""
    if stage == 3:
        return Stage3(module, optimizer, world.rank, world.size)
    return Stage12(module, optimizer, world.rank)


class ZeroEngine:
    """A model, its optimizer and its place in the world. Every method is collective."""

    def __init__(
        self, config: PretrainedConfig, train: TrainConfig, plan: Plan, ds_config: dict[str, Any], world: World
    ) -> None:
        self.plan, self.world = plan, world
        self.dtype = dtype_of(train)
        folder = nvme_folder(ds_config)
        if folder is not None:
            self.nvme = take_nvme(folder, world.local_rank)  # held as long as the engine is
            require_async_io()
        model = build_model(config, train, ds_config)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, train.weight_decay),
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            fused=True,
        )
        with without_compiler():
            self.deepspeed, self.optimizer, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=ds_config
            )
        give_back_memory()
        self.deepspeed.train()
        self.device = torch.device(get_accelerator().current_device_name())
        self.sharding = sharding_of(stage_of(ds_config), self.module, self.optimizer, world)
        self.skeleton = skeleton_of(config)
        self.restore_buffers(made_buffers(self.skeleton))
        self.model = PackedModel(self.module, self.deepspeed, self.device)

    @property
    def module(self) -> torch.nn.Module:
        module: torch.nn.Module = self.deepspeed.module
        return module

    def restore_buffers(self, buffers: dict[str, torch.Tensor]) -> None:
        """Put the model's buffers back as they were made: DeepSpeed casts them with the weights.

        In bf16 the frequencies of rotary positions are off by 1 of 256: long rows would be trained at wrong positions.
        """
        put_buffers(self.module, {name: value.to(self.device) for name, value in buffers.items()})

    def layout(self) -> list[Slot]:
        """Return this rank's slot of every trained parameter, in the model's order; no value is touched."""
        return self.sharding.layout()

    def parts(self, writing: bool = False) -> Iterator[Partition]:
        """Yield this rank's part of every trained parameter, in any order; each is valid until the next is asked for.

        With `writing`, what is put into a part's values is kept; without it, nothing may be put there. All of them have
        to be taken: states that lie in files are written back when the last part has been.
        """
        return self.sharding.parts(writing)

    def frozen(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what belongs to the weights and is not trained: neither layout() nor parts() has it."""
        frozen = {name: shape_of(parameter) for name, parameter in frozen_parameters(self.module)}
        return frozen | {name: tuple(buffer.shape) for name, buffer in persistent_buffers(self.skeleton).items()}

    def fill_frozen(self, weights: Weights) -> None:
        """Fill the parameters and buffers that are not trained; a checkpoint does not hold them."""
        self.sharding.fill_frozen(weights)
        self.restore_buffers(stored_buffers(self.skeleton, weights, self.dtype))

    def start_from(self, weights: Weights) -> None:
        """Fill the master weights with a run's first weights; the moments are zeros again."""
        for part in self.parts(writing=True):
            part.values["master"].copy_(weights.part(part.name, part.shape, part.start, part.stop))
            for moment in MOMENTS:
                part.values[moment].zero_()
        weights.finish(elsewhere=self.frozen())
        self.continue_after(0)

    def continue_after(self, updates: int) -> None:
        """Go on after so many updates of the weights, from parts that a checkpoint has filled."""
        self.sharding.set_step(updates)
        self.sharding.refresh_weights()

    def step(
        self,
        step: int,
        batches: Sequence[MicroBatch],
        trained_tokens: int,
        learning_rate: float,
        judge: Callable[[StepStats], str | None],
    ) -> StepStats:
        """Take one optimizer step on this rank's micro batches; `trained_tokens` counts those of the global batch.

        The loss is the sum over the trained tokens of the global batch divided by their number, whatever the number of
        ranks and accumulation steps. `judge` sees it, and the gradient norm, before the weights change: if it returns a
        reason, the gradients are discarded and neither weights nor moments nor Adam's step counter change.
        """
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = learning_rate
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # of the tokens' losses, of the routers'
        parts = self.parts_of(batches)
        for number, part in enumerate(parts, start=1):
            self.seed(step, part)
            self.deepspeed.set_gradient_accumulation_boundary(number == len(parts))
            loss = self.loss(part)
            sums += loss.sums()
            # DeepSpeed divides gradients by the number of ranks
            self.deepspeed.backward(loss.trained() * (self.world.size / trained_tokens), scale_wrt_gas=False)
            if number < len(parts):
                self.deepspeed.step()  # only counts the micro batch
        dist.all_reduce(sums)
        token_loss, auxiliary_loss = (sums / trained_tokens).tolist()
        stats = StepStats(
            loss=token_loss,
            gradient_norm=self.sharding.gradient_norm(),
            auxiliary_loss=None if self.model.auxiliary_weight is None else auxiliary_loss,
        )
        reason = judge(stats)
        with self.sharding.refusing_gradients() if reason else nullcontext():
            self.deepspeed.step()
        if self.deepspeed.was_step_applied() == bool(reason):
            raise RuntimeError(f"step {step}: DeepSpeed {'took' if reason else 'refused'} an update that we did not")
        return replace(stats, skipped=reason)

    def loss(self, part: MicroBatch) -> Loss:
        """Return the loss of what the model is called with once."""
        return self.model.loss(part)

    def check_isolation(self, examples: Sequence[MicroBatch]) -> IsolationCheck:
        """Prove that documents of a row do not see each other, and choose what keeps them apart.

        `examples` tell what it costs. Raises TrainingError if the model cannot be trained on packed rows.
        """
        self.deepspeed.eval()
        check = check_isolation(self.model, self.plan.row_tokens, examples, self.largest)
        self.deepspeed.train()
        return check

    def largest(self, values: Sequence[float]) -> list[float]:
        """Return the largest value of all ranks at each place."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return list(tensor.tolist())

    def parts_of(self, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """Return what the model is called with for these micro batches, as often on every rank.

        In ZeRO-3 all ranks must call the model equally often; documents in rows of their own take as many calls as
        their lengths want.
        """
        parts = [part for batch in batches for part in self.model.parts(batch)]
        if self.model.isolation is not Isolation.ONE_A_ROW:
            return parts
        missing = self.all_reduce_max(len(parts)) - len(parts)
        return [*parts, *[nothing_of((parts or batches)[0])] * missing]

    @torch.no_grad()
    def validation_loss(self, batches: Iterable[MicroBatch]) -> float | None:
        """Return the loss a trained token of held-out micro batches, each rank giving its share; None if empty."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # nats, tokens
        self.deepspeed.eval()
        for batch in batches:
            for part in self.parts_of([batch]):
                loss = self.loss(part)
                sums[0] += loss.summed
                sums[1] += loss.tokens
        self.deepspeed.train()
        dist.all_reduce(sums)
        nats, tokens = sums.tolist()
        return nats / tokens if tokens else None

    def all_reduce_max(self, value: int) -> int:
        """Return the largest of all ranks' values."""
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def broadcast_from_rank0(self, make: Callable[[], str]) -> str:
        """Return what the first rank makes."""
        made = [make() if self.world.is_first else ""]
        dist.broadcast_object_list(made, src=0)
        return made[0]

    def seed(self, step: int, batch: MicroBatch) -> None:
        """Seed dropout from (seed, step, micro batch): random state is arithmetic, so a checkpoint carries none."""
        part = f".{batch.part}" if batch.part else ""
        digest = hashlib.sha256(f"{self.plan.seed}/{step}/{batch.index}{part}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
