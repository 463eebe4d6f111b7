"""DeepSpeed as the backend of a run's steps: it computes gradients and updates each rank's partition of the states."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from cluster.network.world import World
from cluster.terminal import printing_to_log
from training.config import TrainConfig
from training.models.buffers import made_buffers, persistent_buffers, put_buffers, stored_buffers
from training.models.initial_weights import Weights
from training.models.source import skeleton_of
from training.optimizer_state import MASTER, MOMENTS
from training.plan import Plan
from training.step.compiled_layers import compile_layers, require_compiler
from training.step.packed_model import PackedModel
from training.step.step_engine import StepEngine
from training.step.step_times import LayerClock
from training.zero.adamw import adamw, shape_of
from training.zero.ds_config import stage_of
from training.zero.model import build_model, dtype_of, give_back_memory, layers_after_trained, whole_layers
from training.zero.nvme import nvme_folder, require_async_io, take_nvme
from training.zero.partitions import Partition, Sharding, Slot, frozen_parameters
from training.zero.required_names import check_engine, check_package, check_version
from training.zero.zero3 import Stage3
from training.zero.zero12 import Stage12

# The watchdog ends ranks that hang, and says why, long before; this ends those that it has lost track of. It is longer
# than the watchdog lets a rank load or save, since the others wait for that one in a collective.
COLLECTIVE_TIMEOUT = timedelta(minutes=40)


def join_world(world: World) -> None:
    """Start the process group: nccl on GPUs, gloo on CPUs. Collective.

    Raises ClusterError for a DeepSpeed that the adapters do not fit, before anything is started; raises
    ConnectionError, which is no ShardlineError, if the port is taken: the next start has another one.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"deepspeed\..*|torch\..*")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    check_version()
    check_package(deepspeed)
    deepspeed.utils.nvtx.enable_nvtx = False  # 1,600 marks a step of 32 layers, which only that profiler reads
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    else:
        torch.set_num_threads(1)
    try:
        with without_shm_comm():
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
def without_shm_comm() -> Iterator[None]:
    """Keep DeepSpeed from compiling a shared-memory collective at the start, for 40 s: only inference uses it.

    There is no setting for it; `init_distributed` compiles what this table says can be compiled here.
    """
    ops: dict[str, bool] = deepspeed.ops.__compatible_ops__
    before = dict(ops)
    ops["deepspeed_shm_comm"] = False
    try:
        yield
    finally:
        ops.clear()
        ops.update(before)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Leave functions that are marked for torch.compile as they are.

    `deepspeed.initialize` imports its Muon optimizer, which no run here uses and which is marked so: that alone loads
    torch's compiler, 600 modules and 1 to 2 s of every start.
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


def sharding_of(stage: int, module: torch.nn.Module, optimizer: Any, world: World) -> Sharding:
    """Return the adapter to the optimizer that DeepSpeed builds for a ZeRO stage."""
    if stage == 3:
        return Stage3(module, optimizer, world.rank, world.size)
    return Stage12(module, optimizer, world.rank)


class ZeroEngine(StepEngine):
    """A model and its optimizer, their states partitioned over the ranks. All methods but layout() are collective."""

    def __init__(
        self, config: PretrainedConfig, train: TrainConfig, plan: Plan, ds_config: dict[str, Any], world: World
    ) -> None:
        super().__init__(world, plan.seed, plan.row_tokens, is_even=not plan.division.empty_places)
        self.dtype = dtype_of(train)
        if torch.cuda.is_available():  # without a GPU the default group is one of gloo already
            self.host_group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        if train.compile == "layers":
            require_compiler()
        folder = nvme_folder(ds_config)
        if folder is not None:
            self.nvme = take_nvme(folder, world.local_rank)  # held as long as the engine is
            require_async_io()
        model = build_model(config, train, ds_config)
        with without_compiler(), printing_to_log():  # its bf16 optimizer prints the memory at each step of its making
            self.deepspeed, self.optimizer, *_ = deepspeed.initialize(
                model=model, optimizer=adamw(model, train), config=ds_config
            )
        check_engine(self.deepspeed, self.optimizer, stage_of(ds_config))
        give_back_memory()
        self.set_training(True)
        self.device = torch.device(deepspeed.accelerator.get_accelerator().current_device_name())
        self.sharding = sharding_of(stage_of(ds_config), self.module, self.optimizer, world)
        self.skeleton = skeleton_of(config)
        self.restore_buffers(made_buffers(self.skeleton))
        self.model = PackedModel(self.module, self.deepspeed, self.device)
        self.model.checkpointing = train.activation_checkpointing
        if train.compile == "layers":
            compile_layers(whole_layers(model, stage_of(ds_config)))
            self.model.is_compiled = True
        self.model.attend_by(train.attention)
        self.model.chunk_loss(train.loss_chunk_tokens)
        self.layer_clock = LayerClock(layers_after_trained(self.module), self.device)

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
        """Return this rank's slot of every trained parameter, in the model's order. Not collective."""
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
            part.values[MASTER].copy_(weights.part(part.name, part.shape, part.start, part.stop))
            for moment in MOMENTS:
                part.values[moment].zero_()
        weights.finish(elsewhere=self.frozen())
        self.continue_after(0)

    def continue_after(self, updates: int) -> None:
        """Resume after so many updates of the weights, from partitions that a checkpoint has filled."""
        self.sharding.set_step(updates)
        self.sharding.refresh_weights()

    def set_training(self, training: bool) -> None:
        self.deepspeed.train(training)

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = learning_rate

    def add_gradients(self, loss_sum: torch.Tensor, total_weight: int, *, is_last: bool) -> None:
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed divides gradients by the number of ranks
        self.deepspeed.backward(loss_sum * (self.world.size / total_weight), scale_wrt_gas=False)
        if not is_last:
            self.deepspeed.step()  # only counts the micro batch

    def gradient_norms(self) -> torch.Tensor:
        return self.sharding.gradient_norms()

    def update(self, step: int, norms: torch.Tensor, *, discard: bool) -> None:
        with self.sharding.refusing_gradients() if discard else self.sharding.knowing_norms(norms):
            self.deepspeed.step()
        if self.deepspeed.was_step_applied() == discard:
            raise RuntimeError(f"step {step}: DeepSpeed {'took' if discard else 'refused'} an update that we did not")
