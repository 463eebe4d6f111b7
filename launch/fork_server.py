"""The fork server of a host: it imports what ranks import, and ranks are forked from it.

Its launcher, cluster/launching/fork_server.py, starts it before the ranks, or beside them: then it takes little of
their CPU time. It leaves no thread behind and does not touch a GPU: a process that is forked could use neither.
"""

from __future__ import annotations

import contextvars
import importlib
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cluster.environment import child_environment, rank_names, set_library_variables, update_environment
from cluster.errors import EXIT_FAILED
from cluster.launching.fork_server import AT_ONCE, IN_FORK_SERVER, MOST_BYTES
from cluster.launching.forking import become_ranks, lasting_threads, set_apart
from cluster.machine import gpus_of_host
from cluster.wording import count_of

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "data_prep", "launch", "training")
IMPORTED = ("launch.runs.train", "training.train_rank")  # the last one brings torch, transformers and DeepSpeed
NICENESS = 10
# what an import may raise: ranks are then started afresh, and tell it themselves
IMPORT_ERRORS = (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, SyntaxError)
Stamps = dict[str, tuple[int, int]]


def serve_forks(descriptor: int) -> None:
    """Import, then fork ranks when the launcher asks for them. Returns in each rank; the server itself ends here."""
    control = socket.socket(fileno=descriptor)
    try:
        as_a_rank = set_apart()
        own, gpus, installed = own_stamps(), gpus_of_host(), installed_stamps()
        set_library_variables()
        before = {name: value for name, value in child_environment({}).items() if name not in IN_FORK_SERVER}
        how = control.recv(MOST_BYTES)
        if not lasting_threads():  # else what Python runs at its start has left some, and imports would be in vain
            import_all() if how == AT_ONCE else import_at_leisure()
        why = unfit()
    except IMPORT_ERRORS as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        control.send(why.encode()[:4000])
        os._exit(EXIT_FAILED)
    libraries = library_stamps()
    made = {name: value for name, value in child_environment({}).items() if before.get(name) != value}
    made = {name: value for name, value in made.items() if name not in rank_names()}

    def changed() -> str:
        if gpus_of_host() != gpus:
            return f"this host has {count_of(gpus_of_host(), 'GPU')} now, and had {gpus}"
        return (
            difference(own, own_stamps())
            or difference(installed, installed_stamps())
            or difference(libraries, library_stamps())
        )

    become_ranks(control, changed, as_a_rank)
    update_environment(made)  # by imports, as in a process of its own
    import numpy as np

    np.random.seed()  # as in a process of its own; torch's and Python's generators see to it themselves


def import_all() -> None:
    from launch.ranks.imports import lean_imports

    with lean_imports():
        for name in IMPORTED:
            importlib.import_module(name)


def import_at_leisure() -> None:
    """Import at low priority, as ranks work beside this process. They have what libraries say then in their logs."""
    with silenced(), ThreadPoolExecutor(1, initializer=step_back) as pool:
        context = contextvars.copy_context()
        pool.submit(context.run, import_all).result()
    for variable, value in context.items():  # torch keeps settings in some: they are those of a thread
        variable.set(value)


def step_back() -> None:
    """Leave the CPU to the ranks, in this thread only: a process could not take its priority back without rights."""
    niceness = max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def unfit() -> str:
    """Return in words why no rank can be forked from this process; "" if it can."""
    if lost := lasting_threads():
        return f"threads have been started, which a fork would lose: {', '.join(lost)}"
    probe = os.fork()
    if probe == 0:
        os._exit(int(sys.modules["torch"].cuda._is_in_bad_fork()))
    if os.waitpid(probe, 0)[1]:
        return "imports have started CUDA, which a fork cannot use"
    return ""


@contextmanager
def silenced() -> Iterator[None]:
    """Lead standard output and error to nowhere: what libraries say when they are imported is in the ranks' logs."""
    streams = (sys.stdout, sys.stderr)
    before = [os.dup(stream.fileno()) for stream in streams]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())
    try:
        yield
    finally:
        for stream, descriptor in zip(streams, before, strict=True):
            stream.flush()
            os.dup2(descriptor, stream.fileno())
            os.close(descriptor)
        os.close(nowhere)


def own_stamps() -> Stamps:
    """Return the times and sizes of our own files, imported or not."""
    return stamps([str(path) for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py")])


def installed_stamps() -> Stamps:
    """Return the same of the folders that packages are in: one that is installed, updated or removed changes them."""
    return stamps([folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))])


def library_stamps() -> Stamps:
    """Return the same of all files that modules were loaded from."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return stamps([file for file in files if file])


def stamps(files: Sequence[str]) -> Stamps:
    """Return the time and size of each file; of one that is not there, zeros."""
    found: Stamps = {}
    for file in files:
        try:
            facts = os.stat(file)  # noqa: PTH116  (thousands of them)
        except OSError:
            found[file] = (0, 0)
        else:
            found[file] = (facts.st_mtime_ns, facts.st_size)
    return found


def difference(before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]]) -> str:
    """Return in words which file differs, is new or is gone; "" if none is."""
    changed = sorted(file for file in before.keys() | now.keys() if before.get(file) != now.get(file))
    if not changed:
        return ""
    others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"the code has changed: {changed[0]}{others}"
