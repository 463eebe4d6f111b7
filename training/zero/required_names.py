"""What is used of DeepSpeed: each name of it, in one list for each object, checked when the engine starts.

Most of these names are private, so a release may drop or rename one. A name that is missing has to end the start: found
out later, it could be an update that is wrong. tests/training/zero/test_required_names.py holds these lists to the code
of the adapters, and the other tests of that folder hold a new DeepSpeed to what the names mean.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.errors import ClusterError

TESTED = ("0.19.8",)  # the first is the floor in pyproject.toml, where its reason is; constraints.txt has the last

PACKAGE = {
    "init_distributed": "starts the process group",
    "initialize": "makes the engine and its optimizer",
    "zero.Init": "partitions a parameter as soon as it exists",
    "utils.set_z3_leaf_module": "one gather for a whole layer",
    "accelerator.get_accelerator": "the device",
    "ops.__compatible_ops__": "what init_distributed compiles",
    "ops.op_builder.AsyncIOBuilder": "whether states can be kept in files",
    "utils.nvtx.enable_nvtx": "whether each of its functions is marked for NVIDIA's profiler",
    "runtime.utils.get_global_norm_of_tensors": "the norm of gradients in stage 1 in bf16",
    "runtime.zero.partition_parameters.ZeroParamStatus.AVAILABLE": "says that a parameter is whole",
    "runtime.zero.stage3.reduce_scatter_coalesced": "reduces gradients and gives each rank its part",
    "runtime.zero.partitioned_param_coordinator.iter_params": "lists what is gathered for a module",
}
ENGINE = {
    "module": "the model",
    "train": "between training and evaluation",
    "set_gradient_accumulation_boundary": "whether a micro batch is a step's last",
    "backward": "adds gradients",
    "step": "counts a micro batch, or updates the weights",
    "was_step_applied": "whether the last step did update them",
}
ANY_OPTIMIZER = {
    "optimizer": "the wrapped torch optimizer: its param_groups, and its state of each flat master tensor",
}
STAGE_3 = {
    "grad_position": "[param_id] = (sub_group, offset, numel): where this rank's partition of a parameter lies",
    "get_param_id": "the key of a parameter there",
    "fp32_partitioned_groups_flat": "[sub_group]: master weights, one flat tensor",
    "fp16_partitioned_groups_flat_numel": "[sub_group]: its length, also while it is swapped out",
    "_swappable_optimizer_subgroup": "whether a sub-group's master weights and state are in files",
    "_optimizer_states_and_gradient_swap_in": "reads them into memory",
    "_optimizer_states_and_gradient_swap_out": "writes them back",
    "_release_swap_buffers": "frees the memory without writing",
    "_reassign_or_swap_out_partitioned_parameters": "copies master weights to low-precision weights",
    "persistent_parameters": "small parameters that stay gathered",
    "_get_norm_groups": "the norm of each sub-group's gradients; -1: not finite",
    "averaged_gradients": "[sub_group]: this rank's parts of the gradients of a step",
    "fp16_groups": "[sub_group]: its parameters",
    "micro_step_id": "the number of the micro batch since the last step",
    "offload_optimizer": "whether the optimizer's states lie in the host's memory or in files",
    "partition_grads": "keeps parts of gradients",
    "_DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition": "[ds_id]: where it keeps them",
    "_partition_all_parameters": "frees gathered parameters before an update",
    "parameter_offload.get_param_coordinator": "the object that gathers and frees parameters",
}
STAGE_3_PARAMETER = {
    "ds_tensor": "this rank's partition of the low-precision weight",
    "ds_numel": "its whole length, without padding",
    "ds_shape": "its whole shape",
    "ds_secondary_tensor": "this rank's partition of the copy that hpZ keeps on a node",
    "partition": "writes gathered parameters into their partitions",
    "all_gather": "gathers parameters from their partitions",
    "ds_status": "whether it is whole",
    "ds_id": "its number",
    "ds_persist": "whether it stays whole",
    "ds_process_group": "the ranks that it is partitioned over",
    "ds_zero_param_process_group": "those of its second partition (ZeRO++), or None",
}
STAGES_1_2 = {  # DeepSpeedZeroOptimizer: stage 2; stage 1 in fp32; either with offload to the CPU
    "round_robin_bit16_groups": "[group]: its parameters, in the order of the flat tensor",
    "round_robin_bit16_offsets": "[group]: where each begins there",
    "single_partition_of_fp32_groups": "[group]: this rank's master weights",
    "update_lp_params": "copies master weights to low-precision weights, on all ranks",
    "scaled_global_norm": "the norm of the gradients; -1: not finite",
    "_wait_for_offload_copies": "waits until gradients have arrived in the host's memory",
    "check_grad_overflow": "whether gradients that are not finite are refused",
    "averaged_gradients": "sums of gradients by group; None: none yet",
}
STAGE_1_BF16 = {  # BF16_Optimizer: stage 1 in bf16, which sums gradients in fp32
    "bf16_groups": "[group]: its parameters, one after the other without gaps",
    "fp32_groups_flat_partition": "[group]: this rank's master weights",
    "update_lp_params": "copies master weights to low-precision weights, on all ranks",
    "get_grads_for_norm": "the gradients that the norm is taken of",
}


def check_version() -> None:
    """Raise ClusterError for a DeepSpeed older than the oldest that passes the tests: a refused step would be taken."""
    found = installed()
    if numbers(found) < numbers(TESTED[0]):
        raise ClusterError(
            f"DeepSpeed {found} is installed, {TESTED[0]} or newer is needed: an older one takes steps that a guard has"
            f" refused; {what_to_do()}"
        )


def check_package(deepspeed: Any) -> None:
    """Raise ClusterError if the package lacks a function or class that is used here."""
    check(deepspeed, PACKAGE, "deepspeed")


def check_engine(engine: Any, optimizer: Any, stage: int) -> None:
    """Raise ClusterError if the engine, its optimizer or a parameter of it lacks an attribute that is used here."""
    check(engine, ENGINE, type(engine).__name__)
    check(optimizer, optimizer_names(optimizer, stage), f"{type(optimizer).__name__} (ZeRO stage {stage})")
    if stage == 3:
        for parameter in engine.module.parameters():
            check(parameter, STAGE_3_PARAMETER, "a parameter (ZeRO stage 3)")


def optimizer_names(optimizer: Any, stage: int) -> Mapping[str, str]:
    """Return what is used of the optimizer that DeepSpeed makes for a stage."""
    if stage == 3:
        return {**ANY_OPTIMIZER, **STAGE_3}
    return {**ANY_OPTIMIZER, **(STAGE_1_BF16 if is_bf16_optimizer(optimizer) else STAGES_1_2)}


def is_bf16_optimizer(optimizer: Any) -> bool:
    """Return whether it is the optimizer of stage 1 in bf16; by name, so that this file needs no DeepSpeed."""
    return any(kind.__name__ == "BF16_Optimizer" for kind in type(optimizer).__mro__)


def check(owner: Any, names: Mapping[str, str], title: str) -> None:
    """Raise ClusterError that names every attribute `owner` lacks."""
    lacking = [name for name in names if not has(owner, name.split("."))]
    if lacking:
        told = "; ".join(f"{name} ({names[name]})" for name in lacking)
        raise ClusterError(
            f"DeepSpeed {installed()} is installed, and its {title} has no {told}; training uses that, and was tested"
            f" with DeepSpeed {', '.join(TESTED)}; {what_to_do()}"
        )


def has(owner: Any, path: Iterable[str]) -> bool:
    for name in path:
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return True


def what_to_do() -> str:
    return f"on every node: pip install deepspeed=={TESTED[-1]}, or make, which installs constraints.txt"


def installed() -> str:
    return importlib.metadata.version("deepspeed")


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers up to the first that is none: builds from source are called 0.19.9+unknown."""
    parts = version.partition("+")[0].split(".")
    known = next((n for n, part in enumerate(parts) if not part.isdecimal()), len(parts))
    return tuple(map(int, parts[:known]))
