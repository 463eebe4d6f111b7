"""Connect to the Ray cluster that RAY_ADDRESS names, or start one on this machine and end it afterwards."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.environment import expected_ray_hosts
from cluster.errors import ClusterError

CONNECT_TIMEOUT_S = 10.0
JOIN_TIMEOUT_S = 300.0  # of all hosts: a loaded file system can take minutes to import Ray on many
ROOT = Path(__file__).resolve().parents[2]
OBJECT_STORE_BYTES = 256 * 2**20  # only plans travel through it; the data goes over the disk


@contextmanager
def ray_cluster(cpus: int) -> Iterator[int]:
    """Connect to Ray and yield its number of CPUs; a cluster that is started here has `cpus` and ends with the block.

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
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's socket paths must stay below 107 bytes
    started_here = {
        "num_cpus": cpus,
        "num_gpus": 0,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": folder,
    }
    try:
        ray.init(
            **({"address": address} if address else started_here),
            runtime_env={"env_vars": worker_environment()},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        wait_for_hosts(lambda: sum(node["Alive"] for node in ray.nodes()), expected_ray_hosts())
        yield int(ray.cluster_resources().get("CPU", 0))
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_hosts(alive: Callable[[], int], expected: int) -> None:
    """Wait until all hosts have joined; raise ClusterError with the count if they do not in JOIN_TIMEOUT_S."""
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while (found := alive()) < expected:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"Ray: {found} of {expected} hosts joined within {JOIN_TIMEOUT_S:.0f} s; see above why the "
                "others did not, or submit with fewer hosts"
            )
        time.sleep(0.2)


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
