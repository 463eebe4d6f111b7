"""How many ranks run on each host of a Slurm job, and the options of srun that start a launcher of them there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import ClusterError
from cluster.wording import count_of


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`ranks` and `cpus` are of each host, in Slurm's order. `has_gpus` tells whether each rank has one."""

    hosts: tuple[str, ...]
    ranks: tuple[int, ...]
    cpus: tuple[int, ...]
    has_gpus: bool

    @property
    def options(self) -> list[str]:
        """Return srun's options: a task a host, with all CPUs and GPUs that the job has there.

        A step without an option about GPUs gets all of them. Unequal CPUs cannot be told, so such a task is not bound
        to any by srun; its ranks divide those of the job's cgroup.
        """
        one_each = [f"--nodes={len(self.hosts)}", f"--ntasks={len(self.hosts)}", "--ntasks-per-node=1"]
        equal = len(set(self.cpus)) == 1
        cpus = [f"--cpus-per-task={self.cpus[0]}"] if equal else ["--whole", "--cpu-bind=none"]
        gpus = [f"--gpus-per-node={self.ranks[0]}"] if self.has_gpus and len(set(self.ranks)) == 1 else []
        return [*one_each, *cpus, *gpus]


def plan_layout(hosts: Sequence[str], cpus: Sequence[int], tasks: Sequence[int], gpus: Mapping[str, int]) -> Layout:
    """Return a rank for each GPU of the job, or for each task if the job has none. Raises ClusterError if none fits."""
    has_gpus = any(gpus.values())
    bare = [host for host in hosts if has_gpus and not gpus.get(host)]
    if bare:
        raise ClusterError(
            f"the job has no GPU on {', '.join(bare)}, but has some on other hosts; submit with --gpus-per-node=N"
        )
    ranks = tuple(gpus[host] for host in hosts) if has_gpus else tuple(tasks)
    for host, host_cpus, host_ranks in zip(hosts, cpus, ranks, strict=True):
        if host_cpus < host_ranks:
            raise ClusterError(
                f"{count_of(host_cpus, 'CPU')} for {count_of(host_ranks, 'rank')} on {host};"
                " submit with --exclusive or --cpus-per-gpu=N"
            )
    return Layout(hosts=tuple(hosts), ranks=ranks, cpus=tuple(cpus), has_gpus=has_gpus)
