"""How many ranks run on each host of a Slurm job, and the options of srun that start them there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import ClusterError
from cluster.wording import count_of


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`ranks` are of each host, in Slurm's order. `has_gpus` tells whether each rank has one."""

    hosts: tuple[str, ...]
    ranks: tuple[int, ...]
    cpus_per_rank: int
    has_gpus: bool

    @property
    def is_even(self) -> bool:
        return len(set(self.ranks)) == 1

    @property
    def host_of_each_rank(self) -> list[str]:
        return [host for host, ranks in zip(self.hosts, self.ranks, strict=True) for _ in range(ranks)]

    @property
    def options(self) -> list[str]:
        """Return srun's options. Uneven ones take the hosts from the file in SLURM_HOSTFILE.

        A step without an option about GPUs gets all that the job has on each host.
        """
        common = [f"--ntasks={sum(self.ranks)}", f"--cpus-per-task={self.cpus_per_rank}"]
        if not self.is_even:
            return [*common, "--distribution=arbitrary"]
        gpus = [f"--gpus-per-node={self.ranks[0]}"] if self.has_gpus else []
        return [*common, f"--ntasks-per-node={self.ranks[0]}", *gpus]


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
    least = min(host_cpus // host_ranks for host_cpus, host_ranks in zip(cpus, ranks, strict=True))
    return Layout(hosts=tuple(hosts), ranks=ranks, cpus_per_rank=least, has_gpus=has_gpus)
