"""Checkpoints and failures: how long a save takes, how often to save, and what share of the time is useful."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from training.costs.gpus import Cluster
from training.costs.shapes import ModelShape
from training.costs.speed import PCIE
from training.optimizer_state import STATE_BYTES_PER_PARAMETER

# Llama 3's pre-training (Grattafiori et al. 2024, arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions in 54
# days on 16,384 H100, one in 11,135 s
GPU_SECONDS_BETWEEN_FAILURES = 11_135.0 * 16_384
STORAGE = 2e9  # bytes/s to and from shared storage per node: a guess, `--storage` replaces it
STALL_S = 0.75  # beside the copy: 70B on 1,856 H200 were blocked for 0.78 s a save (PyTorch and Crusoe), 0.01 s to copy
DETECT_S = 60.0  # until a failure is noticed: a hang is named within a minute (docs/training.md)
START_S = 60.0  # until ranks run again on a healthy node, before they load: a guess


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Seconds of one save and of what a failure costs.

    `stall_s`: training waits while states are copied to host memory. `write_s`: in the background, until they are
    safe. `restart_s`: from a failure to the first new step. `failure_s`: the mean time between failures.
    """

    checkpoint_bytes: float
    stall_s: float
    write_s: float
    restart_s: float
    failure_s: float

    @property
    def best_interval_s(self) -> float:
        """Seconds of training between two saves, but not before the last is safe."""
        return max(best_interval_s(self.stall_s, self.failure_s), self.write_s)

    def goodput(self, interval_s: float | None = None) -> float:
        """Return the expected share of the time that adds steps which are not lost again, in the long run.

        Failures are a Poisson process. Save k after a start is safe at restart + k (interval + stall) + write if no
        failure came before; the sum over k of these probabilities is the mean number of saves between two failures.
        """
        interval = self.best_interval_s if interval_s is None else max(interval_s, self.write_s)
        rate = 1 / self.failure_s
        saves = math.exp(-(self.restart_s + self.write_s) * rate) / math.expm1((interval + self.stall_s) * rate)
        return saves * interval * rate

    def without(self, **changes: float) -> Saving:
        """Return the same with some seconds changed."""
        return replace(self, **changes)


def best_interval_s(stall_s: float, failure_s: float) -> float:
    """Return the seconds of training between two saves that lose least, by Young (1974) and Daly (2006).

    Training waits `stall_s` for a save, and there is a failure every `failure_s` in the mean.
    """
    return math.sqrt(2 * stall_s * failure_s)


def saving_of(
    shape: ModelShape, cluster: Cluster, storage: float = STORAGE, *, free_host_bytes: float = math.inf
) -> Saving:
    """Return the times of saves and restarts. Copies go over each GPU's own PCIe, files through each node's storage.

    If the copies do not fit a node's host, training waits until the files are written.
    """
    size = float(STATE_BYTES_PER_PARAMETER * shape.trained)
    moved_s = size / (storage * cluster.nodes)
    copy_s = size / cluster.gpus / (PCIE * cluster.kind.pcie)
    return Saving(
        checkpoint_bytes=size,
        stall_s=STALL_S + (copy_s if size / cluster.nodes <= free_host_bytes else moved_s),
        write_s=moved_s,
        restart_s=DETECT_S + START_S + moved_s,
        failure_s=GPU_SECONDS_BETWEEN_FAILURES / cluster.gpus,
    )
