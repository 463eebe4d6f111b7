"""A DeepSpeed template and the plan, put together into what DeepSpeed is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from training.config import TrainConfig
from training.costs.buckets import Buckets
from training.costs.memory import Offload
from training.plan import Plan

FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"
DEFAULT_TEMPLATE = FOLDER / "zero3.json"
CHOSEN_TEMPLATES: Mapping[tuple[int, Offload], str] = {  # by the stage and what is offloaded
    (1, "none"): "zero1.json",
    (2, "none"): "zero2.json",
    (2, "optimizer"): "zero2_offload_cpu.json",
    (3, "none"): "zero3.json",
    (3, "all"): "zero3_offload_cpu.json",
}
STAGES = (1, 2, 3)
AUTO = {  # keys of zero_optimization that a template may set to "auto", and what of Buckets they become
    "reduce_bucket_size": "reduce",
    "allgather_bucket_size": "reduce",
    "stage3_prefetch_bucket_size": "prefetch",
    "stage3_param_persistence_threshold": "persistence",
}
OFFLOAD_STAGES_1_2 = {"offload_optimizer": ["none", "cpu"], "offload_param": ["none"]}
OFFLOAD_STAGE_3 = {"offload_optimizer": ["none", "cpu", "nvme"], "offload_param": ["none", "cpu"]}
REFUSED = {  # keys of zero_optimization with which a run would not be what it promises, and why
    "zero_hpz_partition_size": "the run's YAML sets it as train.hpz",
    "mics_shard_size": "checkpoints take a parameter to be partitioned over all ranks",
    "zero_quantized_weights": "weights are rounded to 8 bits on their way",
    "zero_quantized_nontrainable_weights": "weights are rounded to 8 bits on their way",
    "zero_quantized_gradients": "gradients are rounded to 4 bits on their way",
}
UNSET = {"zero_hpz_partition_size": (1,), "mics_shard_size": (-1,)}  # values that ask for nothing; of the others, false
OWNED = {  # keys that a template must leave to the run's YAML, and where they are set there
    "train_batch_size": "train.global_batch_rows",
    "train_micro_batch_size_per_gpu": "train.micro_batch_rows",
    "gradient_accumulation_steps": "train.global_batch_rows and train.micro_batch_rows",
    "gradient_clipping": "train.clip_gradient_norm",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "data_types": "train.precision",
    "optimizer": "train.learning_rate, train.weight_decay, train.adam_*",
    "scheduler": "train.schedule, train.warmup_fraction",
}


def read_template(path: Path | None) -> dict[str, Any]:
    """Read a template. Raises ConfigError if it sets what the run's YAML owns, or asks for what is not supported."""
    path = path or DEFAULT_TEMPLATE
    try:
        template = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"train.deepspeed: {path}: no such file; ds_configs/ holds the templates") from None
    except OSError as error:
        raise ConfigError(f"train.deepspeed: {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"train.deepspeed: {path}: not JSON: {error}") from None
    zero = template.get("zero_optimization", {}) if isinstance(template, dict) else None
    if not isinstance(zero, dict):
        raise ConfigError(f"train.deepspeed: {path}: is not of a template's shape; see those in ds_configs/")
    for key in OWNED.keys() & template.keys():
        raise ConfigError(
            f"train.deepspeed: {path}: sets '{key}'; remove it there and set {OWNED[key]} in the run's YAML"
        )
    check_zero(zero, path)
    return dict(template)


def template_for(stage: int, offload: Offload) -> dict[str, Any]:
    """Read the template of ds_configs/ for a stage and what is offloaded."""
    return read_template(FOLDER / CHOSEN_TEMPLATES[stage, offload])


def check_zero(zero: dict[str, Any], path: Path) -> None:
    """Raise ConfigError for a stage, an offload or a way of partitioning that is not supported."""
    where = f"train.deepspeed: {path}: zero_optimization"
    for key, why in REFUSED.items():
        if key in zero and zero[key] not in UNSET.get(key, (False,)):
            raise ConfigError(f"{where}.{key} is {zero[key]}, but {why}; remove it")
    stage = zero.get("stage")
    if stage not in STAGES:
        raise ConfigError(f"{where}.stage is {stage}; accepted: {', '.join(map(str, STAGES))}")
    for section, devices in (OFFLOAD_STAGE_3 if stage == 3 else OFFLOAD_STAGES_1_2).items():
        device = (zero.get(section) or {}).get("device", "none")
        if device not in devices:
            raise ConfigError(f"{where}.{section}.device is {device}; accepted in stage {stage}: {', '.join(devices)}")


def stage_of(ds_config: dict[str, Any]) -> int:
    """Return the ZeRO stage of a template, or of a whole configuration."""
    return int(ds_config["zero_optimization"]["stage"])


def stored_as(template: dict[str, Any]) -> tuple[int, Offload]:
    """Return the stage and what is offloaded, to the host's memory or to NVMe."""
    zero = template["zero_optimization"]
    devices = {part: (zero.get(f"offload_{part}") or {}).get("device", "none") for part in ("optimizer", "param")}
    offload: Offload = "optimizer" if devices["optimizer"] != "none" else "none"
    return stage_of(template), "all" if devices["param"] != "none" else offload


def with_sizes(zero: dict[str, Any], buckets: Buckets) -> dict[str, Any]:
    """Return a template's zero_optimization with a number wherever it says "auto"."""
    sizes = vars(buckets)
    return {key: sizes[AUTO[key]] if value == "auto" and key in AUTO else value for key, value in zero.items()}


def buckets_in(template: dict[str, Any], sized: Buckets) -> Buckets:
    """Return the buckets that a template leads to: its own numbers, and `sized` wherever it says "auto"."""
    zero = with_sizes(template["zero_optimization"], sized)
    own = {name: int(zero[key]) for key, name in AUTO.items() if isinstance(zero.get(key), int | float)}
    return replace(sized, **own)


def deepspeed_config(
    template: dict[str, Any], config: TrainConfig, plan: Plan, buckets: Buckets | None = None
) -> dict[str, Any]:
    """Return the whole DeepSpeed configuration of a run; without `buckets`, they are of a fixed size."""
    return {
        **template,
        "zero_optimization": with_sizes(template["zero_optimization"], buckets or Buckets()),
        "train_batch_size": plan.division.places,  # DeepSpeed counts empty places too: its three sizes must agree
        "train_micro_batch_size_per_gpu": plan.micro_batch_rows,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "gradient_clipping": config.clip_gradient_norm or 0.0,
        "bf16": {"enabled": config.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},  # micro-batches are summed in fp32
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU at each micro batch, and is not read
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW there too: DeepSpeed's is compiled at start
    }
