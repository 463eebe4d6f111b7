"""What the environment says: this process's rank, the GPUs that it may use, its Slurm job, what a user has set.

No other module but cluster/launching/ray_cluster.py reads environment variables: Ray takes its own from there.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import ClusterError
from cluster.machine import cpu_count, gpus_of_host, host_name
from cluster.network.interfaces import interface_towards
from cluster.network.world import HostPlace, World, rank_variables
from cluster.wording import count_of

COMPILE_CACHES = ("TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR")
COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")
END_TIME = "SLURM_JOB_END_TIME"
HOSTS = "SHARDLINE_HOSTS"  # two hosts of a Slurm job, the one of rank 0 first
LAUNCHER, SRUN = "SHARDLINE_LAUNCHER", "srun"  # what launch/train.sh sets for the tasks of its srun
DEVICE, GPU = "SHARDLINE_DEVICE", "gpu"  # what a rank of a Slurm job computes on, if the job has GPUs
MEETING = "SHARDLINE_MEETING"  # what the hosts of one srun share, and no other start has
RANKS = "SHARDLINE_RANKS"  # of each host of a Slurm job, in Slurm's order: node1:8 node2:8


def read_world(environment: Mapping[str, str] | None = None) -> World | None:
    """Return this process's rank and world as its launcher set them; None if no launcher started it as a rank.

    torchrun, the deepspeed launcher and our own set RANK and WORLD_SIZE. Slurm's variables do not make a rank: a batch
    script has them too.
    """
    values = os.environ if environment is None else environment
    if read_host_place(values) is None and "RANK" in values and "WORLD_SIZE" in values:
        if "LOCAL_RANK" not in values:
            raise ClusterError(
                "RANK and WORLD_SIZE are set, but not LOCAL_RANK: if they number hosts instead of ranks, set"
                " PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT; see docs/cluster_examples.md"
            )
        size = number(values, "WORLD_SIZE")
        rank = number(values, "RANK")
        if rank >= size:
            raise ClusterError(f"RANK={rank}: the ranks of a world of {size} are 0 to {size - 1}; see WORLD_SIZE")
        return World(
            rank=rank,
            size=size,
            local_rank=number(values, "LOCAL_RANK"),
            local_size=number(values, "LOCAL_WORLD_SIZE", default=size),
            master=(text(values, "MASTER_ADDR"), number(values, "MASTER_PORT")),
        )
    return None


def read_host_place(environment: Mapping[str, str] | None = None) -> HostPlace | None:
    """Return this host's place as PET_NNODES and the like say it; None without them, and in a rank.

    These are torchrun's names for its own options (its `--nnodes` is PET_NNODES); Kubeflow's TrainJob sets them. In a
    task of the srun that launch/train.sh starts on each host of a Slurm job, Slurm says it.
    """
    values = os.environ if environment is None else environment
    if is_under_srun(values):
        return None if "LOCAL_RANK" in values else slurm_place(values)
    if "PET_NNODES" not in values or "LOCAL_RANK" in values:
        return None
    if not values["PET_NNODES"].isdecimal() or int(values["PET_NNODES"]) < 1:
        raise ClusterError(
            f"PET_NNODES={values['PET_NNODES']}: expected one number of hosts; it may be another one at the next start"
        )
    count = int(values["PET_NNODES"])
    place = number(values, "PET_NODE_RANK", default=0 if count == 1 else None)
    if place >= count:
        raise ClusterError(f"PET_NODE_RANK={place}: the hosts of a run on {count} are 0 to {count - 1}; see PET_NNODES")
    master = ("127.0.0.1", 0)
    if count > 1:
        master = (text(values, "PET_MASTER_ADDR"), number(values, "PET_MASTER_PORT", default=29500))
    return HostPlace(number=place, count=count, ranks=ranks_of_host(values), master=master)


def ranks_of_host(values: Mapping[str, str]) -> int | None:
    ranks = values.get("PET_NPROC_PER_NODE", "auto")
    if ranks == "cpu":
        return cpu_count()
    if ranks in ("auto", "gpu"):
        return None
    if not ranks.isdecimal() or int(ranks) < 1:
        raise ClusterError(f"PET_NPROC_PER_NODE={ranks}: expected a number of ranks, auto, gpu or cpu")
    return int(ranks)


def is_under_srun(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether this process was started on a host of a Slurm job by our srun, as a task of it or as a rank."""
    values = os.environ if environment is None else environment
    return values.get(LAUNCHER) == SRUN


def needs_gpus() -> bool:
    """Return whether each rank of this Slurm job has a GPU, in a task of our srun."""
    return is_under_srun() and os.environ.get(DEVICE) == GPU


def slurm_place(values: Mapping[str, str]) -> HostPlace:
    """Return this host's place among those of the job."""
    ranks, host = list(ranks_of_hosts(values).values()), number(values, "SLURM_NODEID")
    if host >= len(ranks):
        raise ClusterError(f"SLURM_NODEID={host}: {RANKS} tells of {count_of(len(ranks), 'host')} only")
    master = (text(values, "MASTER_ADDR"), number(values, "MASTER_PORT"))
    return HostPlace(number=host, count=len(ranks), ranks=ranks[host], master=master)


def ranks_of_hosts(environment: Mapping[str, str] | None = None) -> dict[str, int]:
    """Return how many ranks each host of a Slurm job has, in Slurm's order, in a task of our srun."""
    values = os.environ if environment is None else environment
    pairs = (pair.rpartition(":") for pair in text(values, RANKS).split())
    return {host: int(ranks) for host, _, ranks in pairs}


def meeting_token() -> str:
    """Return what this host shares with those that were started with it by our srun; "" without one."""
    return os.environ.get(MEETING, "")


def slurm_host() -> str:
    """Return Slurm's name of this host, which its own may differ from; "" outside of Slurm."""
    return os.environ.get("SLURMD_NODENAME", "")


def node_name() -> str:
    """Return the name by which the cluster knows this host: Slurm's, or outside of Slurm its own."""
    return slurm_host() or host_name()


def host_counts(spelled: str) -> list[int]:
    """Return the number for each host as Slurm spells them: 4,2(x2) is 4, 2, 2."""
    matches = [COUNT.fullmatch(part) for part in spelled.split(",")]
    if None in matches:
        raise ClusterError(f"{spelled!r} from Slurm: expected a number for each host, as in 4,2(x2)")
    return [int(match[1]) for match in matches if match for _ in range(int(match[2] or 1))]


def rank_names() -> set[str]:
    """Return the names of the variables that differ from one rank, or one attempt, to the next."""
    anyone = World(rank=0, size=1, local_rank=0, local_size=1, master=("", 0))
    return {*rank_variables(anyone), HOSTS, LOCK, ATTEMPT, CAUSES, STARTED}


def enter_world(world: World) -> None:
    """Set the variables that torch and DeepSpeed read; call it before they are imported."""
    os.environ.update(rank_variables(world))
    hosts = os.environ.get(HOSTS, "").split()
    if len(hosts) > 1 and "GLOO_SOCKET_IFNAME" not in os.environ:
        # else gloo takes the address that the host has for its own name: 127.0.1.1 in Debian's /etc/hosts
        interface = interface_towards(hosts)
        if interface:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    set_library_variables()


def set_library_variables() -> None:
    """Set what the libraries read when they are imported and is the same for all ranks.

    On CPUs a rank gets one thread: ranks share the cores, and a sum's order must not depend on the number of threads.
    """
    if gpu_count() == 0:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["DS_ACCELERATOR"] = "cpu"
    else:
        # without it, products may differ from one time to the next
        set_defaults({"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})
    if is_under_srun():  # where home folders are on a network disk, which all ranks would compile into at once
        local = Path(tempfile.gettempdir()) / f"shardline-caches-{os.getuid()}"
        set_defaults({name: str(local / name.partition("_")[0].lower()) for name in COMPILE_CACHES})


def threads_of_rank(ranks: int) -> dict[str, str]:
    """Return the variable that says how many threads each of a host's ranks computes with on CPUs.

    Under Slurm with GPUs as many as the site says, or as the rank has CPUs; else one.
    """
    name = "OMP_NUM_THREADS"
    if not (is_under_srun() and gpu_count()):
        return {name: "1"}
    return {name: os.environ.get(name) or str(max(1, cpu_count() // ranks))}


def child_environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return this process's environment with `changes`, for a process to be started; None removes a variable."""
    values = {**os.environ, **changes}
    return {name: value for name, value in values.items() if value is not None}


def replace_environment(values: Mapping[str, str]) -> None:
    """Have these variables and no others, as in a process that was started with them."""
    os.environ.clear()
    os.environ.update(values)


def update_environment(values: Mapping[str, str]) -> None:
    os.environ.update(values)


def set_defaults(values: Mapping[str, str]) -> None:
    """Set variables that a library reads when it is imported, except those that the user has set."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def cache_folder() -> Path:
    """Return the user's cache folder of Shardline."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardline"


def wants_colours() -> bool:
    """Return whether a terminal may be written to in colours: see no-color.org, and TERM of a plain one."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def gpu_count() -> int:
    """Return how many NVIDIA GPUs this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return gpus_of_host()


RAY_HOSTS = "SHARDLINE_RAY_HOSTS"


def expected_ray_hosts() -> list[str]:
    """Return the names of the hosts that launch/prepare.sh starts Ray on; none outside of it."""
    return os.environ.get(RAY_HOSTS, "").split()


LOCK = "SHARDLINE_LOCK"


def lock_of_launcher() -> str | None:
    """Return the id of the run's lock that the process which started this rank holds; None if it holds none."""
    return os.environ.get(LOCK)


CAUSES = "SHARDLINE_CAUSES"


def causes_file() -> Path | None:
    """Return where this rank may leave its launcher why it failed; None if our launcher has not started it."""
    return Path(os.environ[CAUSES]) if CAUSES in os.environ else None


ATTEMPT = "SHARDLINE_ATTEMPT"


def attempt_of_launcher() -> str | None:
    """Return the name that our launcher gave this attempt, as its logs have it; None from another launcher."""
    return os.environ.get(ATTEMPT)


STARTED = "SHARDLINE_STARTED"


def started_by_launcher() -> float | None:
    """Return when our launcher began to start this rank, in seconds since boot; None from another launcher."""
    return float(os.environ[STARTED]) if STARTED in os.environ else None


FORK_SERVER = "SHARDLINE_FORK_SERVER"


def fork_server_socket() -> int | None:
    """Return the descriptor by which our launcher talks to this process if that is a fork server; else None."""
    return int(os.environ[FORK_SERVER]) if FORK_SERVER in os.environ else None


def slurm_job() -> str | None:
    """Return the id of this process's Slurm job, which a requeue does not change; None outside of Slurm."""
    return os.environ.get("SLURM_JOB_ID")


def slurm_variables() -> dict[str, str]:
    """Return what Slurm says about this job in the environment."""
    return {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}


def rank_words() -> tuple[list[str], list[str]]:
    """Return options for the srun that starts ranks, and the words that start Python: launch/run.sh describes both."""
    options, python = (shlex.split(os.environ.get(f"SHARDLINE_{name}", "")) for name in ("SRUN_OPTIONS", "PYTHON"))
    return options, python or [sys.executable]


def wants_preflight() -> bool:
    """Return whether a job on Slurm examines its hosts before it starts ranks: unless SHARDLINE_PREFLIGHT=off."""
    return os.environ.get("SHARDLINE_PREFLIGHT", "on").lower() not in ("off", "0", "no", "false")


def patience() -> float:
    """Return the factor on what the launcher waits for, in SHARDLINE_PATIENCE: 1, but less in tests."""
    return float(os.environ.get("SHARDLINE_PATIENCE") or 1)


def allocation_end() -> float | None:
    """Return when Slurm's time limit ends this job, in seconds since 1970; None without one."""
    return float(number(os.environ, END_TIME)) if END_TIME in os.environ else None


def variables(*beginnings: str) -> dict[str, str]:
    """Return the environment variables whose names begin with one of these."""
    return {name: value for name, value in os.environ.items() if name.startswith(beginnings)}


def terminal_type() -> str | None:
    """Return what the terminal calls itself; `dumb` if it knows no escape sequences."""
    return os.environ.get("TERM")


def text(values: Mapping[str, str], name: str) -> str:
    if name not in values:
        raise ClusterError(
            f"{name} is not set, though a launcher started this process; start with launch/train.sh, or see"
            " docs/cluster_examples.md"
        )
    return values[name]


def number(values: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = values.get(name, None if default is None else str(default))
    if value is None:
        return int(text(values, name))
    if not value.isdecimal():
        raise ClusterError(f"{name}={value}: expected a number from the launcher; start with launch/train.sh")
    return int(value)
