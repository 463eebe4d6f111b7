"""One host of a Slurm job's Ray cluster, as a task of srun; on the first host, also the command that uses the cluster.

    python -m cluster.launching.ray_host --name HOST --hosts HOST,HOST --cpus N --port N --folder FOLDER -- [WORDS]

WORDS are for this Python, on the first host only; their exit code is the task's. Ray's folder must be on this host's
disk and its path short. Whatever ends the task, all that it has started ends, and the folder is removed.
"""

from __future__ import annotations

import argparse
import errno
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from cluster.environment import child_environment
from cluster.errors import EXIT_DONE, EXIT_FAILED
from cluster.launching.local_launcher import die_with_parent
from cluster.launching.ray_cluster import OBJECT_STORE_BYTES
from cluster.network.interfaces import address_towards, own_address_towards

ENDING = (
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGINT,
)  # USR2 comes through srun
PORT_IN_USE = errno.EADDRINUSE  # the exit code that asks for another port
END_S = 5.0  # that a process has to end after TERM
LOOK_S = 0.2


def main(arguments: Sequence[str]) -> int:
    """Run Ray on this host until the task is ended or, on the first host, until the command has ended."""
    place = arguments.index("--")
    host = parser().parse_args(arguments[:place])
    is_first = bool(arguments[place + 1 :])
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number in ENDING:
            signal.signal(number, leave_first if is_first else leave)
        return serve_first(host, arguments[place + 1 :], started) if is_first else serve(host, started)
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        for process in reversed(started):
            end(process)
        shutil.rmtree(host.folder, ignore_errors=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.launching.ray_host")
    parser.add_argument("--name", required=True, help="this host, as Slurm calls it")
    parser.add_argument(
        "--hosts", required=True, type=lambda text: text.split(","), help="addresses of the first host and another"
    )
    parser.add_argument("--cpus", required=True, type=int)
    parser.add_argument("--port", required=True, type=int, help="of Ray on the first host")
    parser.add_argument("--folder", required=True, type=Path)
    return parser


def leave(number: int, frame: FrameType | None) -> None:
    """End this process by way of its `finally` blocks. After USR2, by which the launcher ends a host, all is well."""
    sys.exit(EXIT_DONE if number == signal.SIGUSR2 else 128 + number)


def leave_first(number: int, frame: FrameType | None) -> None:
    """The same on the first host, where the command has not come to its end, whichever signal it is."""
    sys.exit(128 + number)


def serve_first(host: argparse.Namespace, words: Sequence[str], started: list[subprocess.Popen[bytes]]) -> int:
    """Start Ray's head and run the command beside it; return the command's exit code."""
    if is_used(host.port):
        return PORT_IN_USE
    address = own_address(host.hosts)
    head = ["--head", f"--port={host.port}", f"--temp-dir={host.folder}", "--include-dashboard=false"]
    ray = start_ray(host, address, head)
    started.append(ray)
    while not answers(address, host.port):
        if ray.poll() is not None:
            return ray.returncode or EXIT_FAILED
        time.sleep(LOOK_S)
    environment = child_environment({"RAY_ADDRESS": f"{address}:{host.port}"})
    command = subprocess.Popen([sys.executable, *words], env=environment, preexec_fn=die_with_parent)
    started.append(command)
    code = command.wait()
    return code if code >= 0 else 128 - code


def serve(host: argparse.Namespace, started: list[subprocess.Popen[bytes]]) -> int:
    """Join the first host's Ray cluster, for as long as that lasts."""
    while not answers(host.hosts[0], host.port):
        time.sleep(LOOK_S)
    head = socket.gethostbyname(host.hosts[0])
    ray = start_ray(host, own_address(host.hosts), [f"--address={head}:{host.port}"])
    started.append(ray)
    code = ray.wait()
    return code if code >= 0 else 128 - code


def start_ray(host: argparse.Namespace, address: str, role: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start Ray on this host. Ray knows the host by Slurm's name for it."""
    size = [f"--num-cpus={host.cpus}", "--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    manners = ["--disable-usage-stats", "--log-color=false", "--block"]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *role),
            *(f"--node-name={host.name}", f"--node-ip-address={address}", *size, *manners),
        ],
        env=child_environment({"RAY_ADDRESS": None}),  # `ray start --head` would join it
        stdout=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )


def own_address(hosts: Sequence[str]) -> str:
    """Return the address that the other hosts know this one by, which its own name may not resolve to."""
    return address_towards(hosts) or next(filter(None, map(own_address_towards, hosts)), "127.0.0.1")


def is_used(port: int) -> bool:
    """Return whether another program of this host listens at a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
        return False


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=END_S).close()
    except OSError:
        return False
    return True


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
