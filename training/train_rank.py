"""Set up one rank of a run and train."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError

from cluster.disk.atomic_files import write_json, write_text
from cluster.environment import attempt_of_launcher, needs_gpus, node_name, set_defaults
from cluster.errors import EXIT_FAILED, ClusterError, ConfigError, DamagedRowsError, exit_code_of
from cluster.hangs.flight_recorder import recorder_variables
from cluster.heartbeats.heartbeat import Heartbeat
from cluster.journal.journal import Journal
from cluster.journal.records import write_event
from cluster.launching.limits import keep_to_share
from cluster.launching.rank_cause import tell_cause
from cluster.launching.stop_request import StopFlag
from cluster.machine import free_memory_bytes
from cluster.network.world import World
from cluster.paths import RunPaths
from cluster.restart_limit import attempt_name
from cluster.versions import as_text, versions
from data_prep.shards import Manifest, ShardReader, check_shards, read_manifest
from training.advice.run_warnings import run_warnings
from training.checkpoints.async_save import SavePolicy
from training.checkpoints.checkpoint import Checkpoints
from training.config import ModelConfig, TrainConfig
from training.costs.buckets import Buckets, sized_buckets
from training.costs.choice import Choice, MachineMemory
from training.costs.shapes import ModelShape, shape_of_skeleton
from training.costs.table import state_line
from training.costs.utilization import utilization_of
from training.device import device_name, make_deterministic, peak_memory_bytes
from training.loop import Outcome, train
from training.models.source import ModelOrigin, find_model
from training.order import order_of
from training.plan import Plan, make_plan
from training.reporting.incidents import changes_text
from training.run_identity import changes, deal_of_run
from training.step.balance import balance_lines
from training.step.batches import Batches
from training.step.step_times import Profile
from training.zero.ds_config import deepspeed_config, read_template
from training.zero.engine import ZeroEngine, join_world, leave_world
from training.zero.stage_choice import (
    choice_of,
    decided_by_rank0,
    layout_of,
    least_memory,
    recorded,
    rounding_changes,
    template_of,
    with_hpz,
)

log = logging.getLogger(__name__)

OF_CONNECTIONS = ("gloo", "nccl", "connection")
TOLD_S = 3.0  # by then a heartbeat has told all hosts of a phase


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a rank needs to know of a run. `config` is the YAML text that the run's folder keeps."""

    paths: RunPaths
    config: str
    shards: Path
    model: ModelConfig
    train: TrainConfig
    seed: int
    profiled: tuple[int, int] | None = None
    """The first and the last step (from 1) to trace."""
    log_file: Path | None = None
    """Where this rank's output goes."""
    before: Mapping[str, Any] | None = None
    """The plan of the attempt to keep to, where it is not the one that the run's folder has."""


@dataclass(frozen=True, kw_only=True)
class RankSetup:
    """The objects a rank trains with."""

    plan: Plan
    choice: Choice
    before: Mapping[str, Any] | None
    """The plan of the attempt that this one keeps to: the run's last one, unless the request has another."""
    engine: ZeroEngine
    batches: Batches
    checkpoints: Checkpoints
    shape: ModelShape
    """The model as far as its costs go."""


def train_rank(request: RunRequest, world: World, stop: StopFlag) -> int:
    """Train as one rank of `world`; return the exit code. Collective."""
    heartbeat = Heartbeat(request.paths, world)
    heartbeat.start()
    if torch.cuda.is_available():
        record_collectives(request.paths, heartbeat.opened()[0])
    heartbeat.start_watchdog(request.train.hang_timeout_s)
    journal = Journal(request.paths, world, heartbeat)
    journal.mark("imports")
    journal.log_file = request.log_file
    journal.device, journal.peak_memory_bytes = device_name(), peak_memory_bytes
    if world.is_first:
        log.info("%s", as_text(versions()))  # the first call, so that what is recorded is the code that runs
    try:
        settle_beside_gpu(world)
        setup = assemble(request, world, journal.mark)
        if request.profiled:
            first, last = request.profiled
            setup.engine.profile = Profile(
                first=first,
                last=last,
                folder=request.paths.profile,
                rank=world.rank,
                before_writing=partial(announce_silence, journal),
            )
        if world.is_first:
            precision = request.train.precision
            journal.mfu = utilization_of(setup.shape, journal.device, world.size, precision).mfu
        journal.when_accepted(partial(write_accepted, request, setup, journal))
        stop.save_s = setup.checkpoints.longest_save_s
        outcome = train(setup.plan, setup.engine, setup.batches, setup.checkpoints, stop, journal)
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code_of(error)
        cause = journal.end_by_another_rank() if code == EXIT_FAILED else None  # then this failure only follows from it
        told = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        if code == EXIT_FAILED and not world.is_first and not is_by_others(error):  # rank 0 has its own end
            tell_cause(world.rank, f"{self_named(world, error)} failed: {told}")
        journal.end(told, code, is_own=isinstance(error, DamagedRowsError))
        if cause:
            raise ClusterError(f"another rank ended the run: {cause}") from None
        raise
    reason = "done" if outcome is Outcome.FINISHED else str(stop.reason)
    journal.end(reason, outcome.value)
    log.info("%s after step %d of %d", reason, journal.last_step, setup.plan.total_steps)
    if setup.engine.profile and not setup.engine.profile.traced:
        log.warning("--profile: nothing was traced; this start took none of these steps, or could not write")
    leave_world()
    return outcome.value


def is_by_others(error: BaseException) -> bool:
    """Return whether an error may be that of a collective whose other ranks are gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError | ConnectionError) or any(word in text for word in OF_CONNECTIONS)


def self_named(world: World, error: BaseException) -> str:
    """Return which rank has failed: `on` its host where the GPU is at fault, as two such failures exclude a host.

    An assertion of device code says that the data or the code is wrong.
    """
    host = node_name()
    is_of_host = isinstance(error, torch.AcceleratorError) and "assert" not in str(error)
    return f"rank {world.rank} on {host}" if is_of_host else f"rank {world.rank} ({host})"


def record_collectives(paths: RunPaths, local: Path) -> None:
    """Have NCCL's flight recorder keep each rank's last collectives, and write them into the run's folder if asked."""
    paths.hangs.mkdir(parents=True, exist_ok=True)
    attempt = attempt_of_launcher() or attempt_name(paths)
    set_defaults(recorder_variables(paths.dumps(attempt), local))


def settle_beside_gpu(world: World) -> None:
    """Keep to the CPUs next to this rank's GPU: in a job of Slurm, the ranks of a host divide all that it has there."""
    if needs_gpus():
        if torch.cuda.is_available():  # first: to ask about a GPU must not take memory of the first one
            torch.cuda.set_device(world.local_rank)
        keep_to_share(world.local_rank, world.local_size, gpu_addresses(world.local_size))


def gpu_addresses(count: int) -> list[str]:
    """Return the PCI address of each of this host's first GPUs, as the kernel spells it; none if torch is too old."""
    found: list[Any] = [torch.cuda.get_device_properties(gpu) for gpu in range(min(count, torch.cuda.device_count()))]
    if not all(hasattr(gpu, "pci_bus_id") for gpu in found):
        return []
    return [f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0" for gpu in found]


def announce_silence(journal: Journal, step: int) -> None:
    """Let the watchdogs know that this rank says nothing for a while: no thread runs while torch writes a trace."""
    journal.phase("idle", step)
    time.sleep(TOLD_S)


def write_accepted(request: RunRequest, setup: RankSetup, journal: Journal, first_step: int) -> None:
    """Write the configuration and the plan into the run's folder, now that its checkpoint is known to fit them.

    Only rank 0 calls this. What changed since the recorded plan is written before that plan is replaced: after a kill
    in between, the next start finds the same change and writes it again, which readers bear.
    """
    write_text(request.paths.config, request.config)
    record = {**setup.plan.as_record(), "zero": setup.choice.as_record()}
    then = setup.checkpoints.restored_identity
    changed = changes(then, setup.checkpoints.identity) if then else {}
    if changed:
        journal.change_length({key: list(values) for key, values in changed.items()}, setup.plan.total_steps)
    rounded = rounding_changes(setup.before, record) if then and setup.before else {}
    if rounded:
        changed_lists = {key: list(values) for key, values in rounded.items()}
        write_event(request.paths, "rounding", step=first_step, changed=changed_lists)
        told = changes_text(rounded)
        log.warning("steps are not bit for bit those of an undisturbed run, but differ by rounding: %s", told)
    write_json(request.paths.plan, record)


def assemble(request: RunRequest, world: World, mark: Callable[[str], None]) -> RankSetup:
    """Plan the run, join the world and build what a rank trains with; no checkpoint is loaded yet. Collective.

    `mark` is called with the name of each phase as it ends.
    """
    manifest = read_manifest(request.shards)
    if world.is_first:  # one rank for all: asked by each of a thousand, a shared disk answers for minutes
        check_shards(request.shards, manifest.trained_from())
    origin = find_model(request.model, request.shards, manifest)
    read_template(request.train.deepspeed)  # a bad one is told before the ranks meet
    plan = make_plan(
        request.train,
        manifest,
        parameters=origin.parameters,
        trained_parameters=origin.trained_parameters(request.train),
        world_size=world.size,
        seed=request.seed,
    )
    plan = replace(plan, deal=deal_of_run(request.paths, manifest))
    batches = batches_of(request, world, plan, manifest)
    if world.is_first:
        log.info("plan\n%s", "\n".join([plan.as_text(), *balance_lines(batches, plan.total_steps)]))
        for warning in run_warnings(origin, plan, manifest, request.model):
            log.warning("%s", warning)
    mark("plan")
    join_world(world)
    if request.train.deterministic:
        make_deterministic()
    mark("ranks")
    before = request.before or recorded(request.paths.plan)
    machine = least_memory(world)
    shape = shape_of_skeleton(origin.trained_skeleton(request.train), origin.config)
    choice, buckets = decided_by_rank0(lambda: decide(request.train, plan, shape, machine, before), world)
    template = with_hpz(template_of(request.train, choice), request.train, world)
    engine = build_engine(origin, request.train, plan, deepspeed_config(template, request.train, plan, buckets), world)
    mark("engine")
    checkpoints = Checkpoints(
        request.paths.checkpoints,
        {**plan.identity(), **origin.identity(), **frozen_identity(engine, origin, request.seed)},
        save_policy(request.train),
        first_weights=lambda: origin.first_weights(request.seed, request.train.lora),
        rows=plan.rows,
        total_steps=plan.total_steps,
    )
    if engine.frozen():
        engine.fill_frozen(origin.first_weights(request.seed, request.train.lora))
    return RankSetup(
        plan=plan,
        choice=choice,
        before=before,
        engine=engine,
        batches=batches,
        checkpoints=checkpoints,
        shape=shape,
    )


def batches_of(request: RunRequest, world: World, plan: Plan, manifest: Manifest) -> Batches:
    """Return what a rank reads, of the rows to train and of those held out."""
    return Batches(
        reader=ShardReader(request.shards, manifest, "train"),
        order=order_of(manifest, plan.global_batch_rows, plan.seed),
        rank=world.rank,
        world_size=world.size,
        micro_batch_rows=plan.micro_batch_rows,
        deal=plan.deal,
        held_out=ShardReader(request.shards, manifest, "validation"),
        held_out_rows=min(request.train.validation_rows, manifest.rows("validation")),
        pin=torch.cuda.is_available(),
    )


def decide(
    train: TrainConfig,
    plan: Plan,
    shape: ModelShape,
    machine: MachineMemory | None,
    before: Mapping[str, Any] | None,
) -> tuple[Choice, Buckets | None]:
    """Choose and log where a run's states lie, and size the buckets; without a GPU they are of a fixed size."""
    choice = choice_of(train, plan, shape, machine, before)
    told = f"{choice.as_text()}\n{state_line(shape, layout_of(train, plan, choice, shape, machine))}"
    log.log(logging.INFO if choice.fits else logging.WARNING, "%s", told)
    return choice, None if machine is None else sized_buckets(shape)


def build_engine(
    origin: ModelOrigin, train: TrainConfig, plan: Plan, config: dict[str, Any], world: World
) -> ZeroEngine:
    """Build the engine. Raises ConfigError if DeepSpeed rejects a key or value of the template. Collective."""
    try:
        return ZeroEngine(origin.config, train, plan, config, world)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise ConfigError(
            f"train.deepspeed: {train.deepspeed}: DeepSpeed rejects it: {told}; correct these keys"
        ) from None


def save_policy(train: TrainConfig) -> SavePolicy:
    """Return how checkpoints are saved and which are kept; by default, copies may take half of the free memory."""
    allowed = free_memory_bytes() // 2 if train.save_copy_gb is None else int(train.save_copy_gb * 1e9)
    return SavePolicy(keep_last=train.keep_last, keep_every_steps=train.keep_every_steps, copy_bytes=allowed)


def frozen_identity(engine: ZeroEngine, origin: ModelOrigin, seed: int) -> dict[str, str]:
    """Return a digest of the source of the frozen weights, which no checkpoint holds. Collective: rank 0 reads it."""
    if not engine.frozen():
        return {}
    return {"frozen weights": engine.broadcast_from_rank0(lambda: origin.source_digest(seed))}
