"""Connect to the Ray cluster that RAY_ADDRESS names, or start one on this machine and end it afterwards."""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cluster.environment import expected_ray_hosts, patience
from cluster.errors import ClusterError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
START_S = 120.0  # that a cluster which launch/prepare.sh has just started has to take work
JOIN_S = 60.0  # that hosts have to join before the work begins; those that join later get their share of it too
ROOT = Path(__file__).resolve().parents[2]
OBJECT_STORE_BYTES = 256 * 2**20  # only plans travel through it; the data goes over the disk


@contextmanager
def ray_cluster(cpus: int) -> Iterator[int]:
    """Connect to Ray and yield its number of CPUs; a cluster that is started here has `cpus` and ends with the block.

    CPUs of hosts of a Slurm job that have not joined yet are part of the number, as if they had as many as the others.

    Workers find our packages whatever folder they start in. Raises ClusterError if Ray is absent or does not answer.
    """
    try:
        import ray
    except ImportError:
        raise ClusterError(
            "data.executor: ray is not installed here; `pip install 'ray>=2.49'`, or write `executor: local`"
        ) from None
    address = caller_address()
    if address:
        check_answers(address)
    with ExitStack() as at_end:
        options = {"address": address} if address else options_of_own(cpus, at_end)
        at_end.callback(ray.shutdown)
        options |= {"runtime_env": {"env_vars": worker_environment()}, "logging_level": logging.ERROR}
        expected = expected_ray_hosts()
        connect({**options, "log_to_driver": False}, START_S if expected else 0.0)
        missing = wait_for_hosts(names_of_hosts, expected, JOIN_S * patience())
        found = int(ray.cluster_resources().get("CPU", 0))
        joined = len(expected) - len(missing)
        yield math.ceil(found * len(expected) / joined) if joined else found


def connect(options: dict[str, Any], within_s: float) -> None:
    """Connect to Ray. On a loaded host, its first processes listen long before it takes work: then again until it does.

    Raises ClusterError.
    """
    import ray

    deadline = time.monotonic() + within_s
    while True:
        try:
            ray.init(**options)
            return
        except ConnectionError as error:
            ray.shutdown()
            if time.monotonic() > deadline:
                raise ClusterError(f"Ray: {error}; look at its logs on that host, and run the command again") from None
            time.sleep(1.0)


def names_of_hosts() -> set[str]:
    import ray

    return {str(node["NodeName"]) for node in ray.nodes() if node["Alive"]}


def options_of_own(cpus: int, at_end: ExitStack) -> dict[str, Any]:
    """Return the options that start a cluster on this machine; its folder is removed at the end."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's socket paths must stay below 107 bytes
    at_end.callback(shutil.rmtree, folder, ignore_errors=True)
    return {
        "num_cpus": cpus,
        "num_gpus": 0,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": folder,
    }


def wait_for_hosts(alive: Callable[[], set[str]], expected: Sequence[str], within_s: float) -> list[str]:
    """Wait until all hosts have joined, but no longer than `within_s`; return those that have not.

    One is enough: a host that is lost, or starts slowly, must not cost the job.
    """
    deadline = time.monotonic() + within_s
    while missing := [host for host in expected if host not in alive()]:
        if time.monotonic() > deadline:
            told = "Ray: %d of %d hosts joined within %.0f s; continuing without %s"
            log.warning(told, len(expected) - len(missing), len(expected), within_s, ", ".join(missing))
            break
        time.sleep(0.2)
    return missing


def check_answers(address: str) -> None:
    """Raise ClusterError if nothing listens at `host:port`; Ray itself would wait for five minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # 'auto' and its like: Ray looks for the cluster itself
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, or unset RAY_ADDRESS, or write "
            "`executor: local` below data"
        ) from None


def caller_address() -> str | None:
    """Return the address in RAY_ADDRESS, and turn off Ray's usage reports.

    Ray reads both from the environment and offers no other way.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # noqa: TID251
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # noqa: TID251  Ray warns without it
    return os.environ.get("RAY_ADDRESS") or None  # noqa: TID251


def worker_environment() -> dict[str, str]:
    """Return what Ray's workers need: our packages, and one thread each, since Ray runs one for each CPU."""
    inherited = os.environ.get("PYTHONPATH", "")  # noqa: TID251  it would be replaced, not extended
    paths = [str(ROOT), *inherited.split(os.pathsep)]
    return {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "TOKENIZERS_PARALLELISM": "false"}
