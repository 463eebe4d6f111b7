"""Offload to files on a local disk: what has to be there, found before a model is built."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any, TextIO

import deepspeed

from cluster.errors import ClusterError, ConfigError


def nvme_folder(ds_config: dict[str, Any]) -> Path | None:
    """Return where a configuration keeps its optimizer states in files, or None if it does not."""
    offload = ds_config["zero_optimization"].get("offload_optimizer") or {}
    return Path(offload.get("nvme_path") or "") if offload.get("device") == "nvme" else None


def take_nvme(folder: Path, local_rank: int) -> TextIO:
    """Take a folder for one rank's states until the returned file is closed: all runs' files have the same names there.

    Raises ConfigError if there is no such folder, or another run has it.
    """
    where = "train.deepspeed: zero_optimization.offload_optimizer.nvme_path"
    if not folder.is_absolute() or not folder.is_dir():
        raise ConfigError(f"{where}: {folder} is not a folder here; copy the template and name one on a local disk")
    lock = (folder / f"rank-{local_rank}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"{where}: {folder} is in use by another run; give this one a folder of its own") from None
    return lock


def require_async_io() -> None:
    """Raise ClusterError if DeepSpeed's asynchronous reader and writer of files cannot be built here.

    It is the one thing that is compiled at a start, the first one on a machine.
    """
    if not deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible():
        raise ClusterError(
            "offload to NVMe needs libaio's headers, a C++ compiler and ninja (Debian: libaio-dev g++; pip: ninja);"
            " install them on every node, or use ds_configs/zero3_offload_cpu.json"
        )
