"""Facts of this host: its code and packages, limits, name, caches, disk and the files that a run reads."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import resource
import shutil
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import FULL, sha256_of
from cluster.environment import variables
from cluster.machine import host_name
from cluster.model_files import CONFIG, cached_folder, looks_local
from cluster.preflight.findings import NOT_INSTALLED
from cluster.versions import ROOT, library_version, versions

CODE = ("cluster", "data_prep", "training", "launch")
PACKAGES = ("torch", "deepspeed", "transformers", "safetensors", "tokenizers", "pyarrow", "numpy")
SHARED_MEMORY = Path("/dev/shm")
INFINIBAND = Path("/sys/class/infiniband")
MOUNTS = Path("/proc/self/mounts")
SIOCGIFADDR = 0x8915  # netdevice(7): the IPv4 address of an interface
CACHES = {"TRITON_CACHE_DIR": "~/.triton/cache", "TORCH_EXTENSIONS_DIR": "~/.cache/torch_extensions"}
WRITTEN = b"\0" * (1 << 20)
YES = ("1", "ON", "YES", "TRUE")  # what huggingface_hub takes for yes


def probe_code() -> dict[str, str]:
    """Return what must be equal on all hosts for them to compute the same."""
    return {
        "code": code_digest(ROOT),
        "commit": str(versions()["commit"] or "none"),
        "python": platform.python_version(),
        **{name: library_version(name) or NOT_INSTALLED for name in PACKAGES},
    }


def code_digest(root: Path) -> str:
    """Return a digest of all Python files of our packages, so that changes without a commit are seen."""
    digest = hashlib.sha256()
    for path in sorted(path for package in CODE for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()[:12]


def probe_limits() -> dict[str, Any]:
    """Return this process's limits, None for unlimited, and the size of the memory that processes share."""
    shared = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    return {
        "open_files": soft_limit(resource.RLIMIT_NOFILE),
        "open_files_hard": hard_limit(resource.RLIMIT_NOFILE),
        "locked_bytes": soft_limit(resource.RLIMIT_MEMLOCK),
        "core_bytes": soft_limit(resource.RLIMIT_CORE),
        "file_bytes": soft_limit(resource.RLIMIT_FSIZE),
        "shared_memory_bytes": shared.total if shared else 0,
        "shared_memory_free_bytes": shared.free if shared else 0,
        "has_infiniband": INFINIBAND.is_dir() and any(INFINIBAND.iterdir()),
    }


def soft_limit(kind: int) -> int | None:
    return finite(resource.getrlimit(kind)[0])


def hard_limit(kind: int) -> int | None:
    return finite(resource.getrlimit(kind)[1])


def finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def probe_name(peers: Sequence[str] = ()) -> dict[str, Any]:
    """Return what this host's own name resolves to, its interfaces, and the one that leads to the other hosts."""
    interfaces = interface_addresses()
    return {
        "name": host_name(),
        "addresses": addresses_of(host_name()),
        "interfaces": interfaces,
        "suggested": interface_towards(peers, interfaces),
        "set": variables("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"),
    }


def addresses_of(name: str) -> list[str]:
    """Return the IPv4 addresses of a name; none if it does not resolve."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return sorted({str(address[0]) for *_, address in found})


def interface_addresses() -> dict[str, str]:
    """Return the IPv4 address of each interface that has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


def interface_towards(peers: Sequence[str], interfaces: dict[str, str]) -> str | None:
    """Return the interface that this host would reach the first other host by, else the first that leads outside."""
    outside = {address: name for name, address in interfaces.items() if not address.startswith("127.")}
    others = [address for peer in peers for address in addresses_of(peer) if address not in outside]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for address in others:
            if not address.startswith("127."):
                try:
                    probe.connect((address, 9))  # sends nothing: the kernel chooses the route
                except OSError:
                    continue
                if (name := outside.get(probe.getsockname()[0])) is not None:
                    return name
    return next(iter(outside.values()), None)


def probe_caches() -> dict[str, dict[str, str]]:
    """Return where compiled kernels are kept, and on which kind of file system."""
    found = {}
    for name, default in CACHES.items():
        path = Path(variables(name).get(name) or default).expanduser()
        found[name] = {"path": str(path), "filesystem": filesystem_of(path)}
    return found


def filesystem_of(path: Path) -> str:
    """Return the type of the file system that a path is on, or would be."""
    there = str(nearest(path).resolve())
    best, kind = "", "unknown"
    for line in MOUNTS.read_text(errors="replace").splitlines():
        _, mounted, filesystem, *_ = line.split(" ")
        mounted = mounted.replace(r"\040", " ")
        is_above = there == mounted or there.startswith(mounted.rstrip("/") + "/")
        if is_above and len(mounted) >= len(best):  # of two mounts in one place the later one is seen
            best, kind = mounted, filesystem
    return kind


def nearest(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def probe_folder(folder: Path, meeting: Path | None) -> dict[str, Any]:
    """Return whether this host can write where the run goes, what is free there, and whether it is shared.

    `meeting` is the folder that the first host has made for each to leave a file in; None if this host is alone.
    """
    place = nearest(folder) if meeting is None else meeting
    facts: dict[str, Any] = {"path": str(folder), "is_seen": meeting is None or meeting.is_dir(), "problem": None}
    if not facts["is_seen"]:
        return {**facts, "filesystem": filesystem_of(folder)}
    facts["problem"] = problem_of_writing(place) if place.is_dir() else f"{place} is a file"
    if meeting is not None and facts["problem"] is None:
        facts["left"] = f"{host_name()}-{os.getpid()}"
        (meeting / facts["left"]).touch()
    state = os.statvfs(place)
    return {
        **facts,
        "filesystem": filesystem_of(place),
        "free_bytes": state.f_bavail * state.f_frsize,
        "free_files": state.f_favail if state.f_files else None,  # some file systems have no fixed number
    }


def problem_of_writing(folder: Path) -> str | None:
    """Return why a file cannot be written, made durable, renamed and removed in a folder; None if it can."""
    partial = folder / f".doctor-{host_name()}-{os.getpid()}.partial"
    try:
        try:
            with partial.open("wb") as stream:
                stream.write(WRITTEN)
                stream.flush()
                os.fsync(stream.fileno())
            partial = partial.rename(partial.with_suffix(".whole"))
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        return FULL.get(error.errno or 0) or f"{error.strerror} ({errno.errorcode.get(error.errno or 0, 'unknown')})"
    return None


def probe_files(model: str | None, manifest: Path) -> dict[str, Any]:
    """Return what this host sees of the model and of the prepared data, without asking the network for it."""
    folder = None if model is None else model_folder(model)
    return {
        "model": model,
        "model_digest": None if folder is None else sha256_of(folder / CONFIG),
        "is_local": model is not None and (looks_local(model) or Path(model).expanduser().exists()),
        "is_offline": variables("HF_HUB_OFFLINE").get("HF_HUB_OFFLINE", "").upper() in YES,
        "cache": variables("HF_HOME").get("HF_HOME") or "~/.cache/huggingface",
        "manifest": str(manifest),
        "data_digest": sha256_of(manifest) if manifest.is_file() else None,
    }


def model_folder(model: str) -> Path | None:
    """Return the folder that holds a model's configuration on this host; of the Hub's, only if weights are there."""
    folder = Path(model).expanduser()
    if (folder / CONFIG).is_file():
        return folder
    return None if looks_local(model) else cached_folder(model, weights=True)


def probe_clock() -> float:
    """Return the seconds since 1970 by this host's clock."""
    return time.time()
