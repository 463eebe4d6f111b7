"""One function over many items, on this machine's processes or on Ray; results come in the order of the items."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from cluster.errors import ClusterError, ShardlineError
from cluster.ray_cluster import ray_cluster

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Executor = Literal["local", "ray"]

IN_FLIGHT = 3  # items handed out for each worker, so that none waits for the next and the plans do not pile up
LOOK_S = 5.0  # between two looks at the hosts of a Ray cluster, while an item is waited for
STALL_S = 600.0  # without a finished item; one takes seconds
RETRIES = 3  # of an item whose Ray worker or node died


class Workers:
    """The processes that items are mapped over: started at the first use, ended with the block.

    Functions must be importable by name. An exception of theirs surfaces as it was raised; the items after it that
    have not begun are dropped. If no item is finished for `stall_s`, a ClusterError names what it waits for.
    """

    def __init__(self, count: int | None, stall_s: float = STALL_S) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self.stall_s = stall_s
        self.stack = ExitStack()
        self.pool: ProcessPoolExecutor | None = None
        self.ray_cpus: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.end_processes()  # what they are at would be waited for
        self.stack.close()

    def end_processes(self) -> None:
        """End the local processes at once, whatever they are at: a slice's file is whole or not there."""
        for process in self.processes():
            process.kill()

    def processes(self) -> list[multiprocessing.process.BaseProcess]:
        return list((self.pool._processes or {}).values()) if self.pool is not None else []  # no public way

    def map_slices(
        self, function: Callable[[Item], Result], items: Sequence[Item], executor: Executor
    ) -> Iterator[Result]:
        """Yield the result of each item, in order. Raises ClusterError if a local worker dies."""
        if not items:
            return iter(())
        if executor == "ray":
            return self.map_on_ray(function, items)
        if self.count == 1 or len(items) == 1:
            return map(function, items)  # starting a process costs 0.3 s
        return self.map_on_processes(function, items)

    def map_on_processes(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        if self.pool is None:
            self.pool = ProcessPoolExecutor(
                self.count, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
            )
            self.stack.callback(self.pool.shutdown, cancel_futures=True)
        pool = self.pool
        try:
            yield from in_order(
                items, lambda item: submitted(pool, function, item), self.local_result, IN_FLIGHT * self.count
            )
        except BrokenProcessPool:
            raise ClusterError(
                "a worker process was killed, most often because the memory was full; run the command again with "
                f"fewer workers than {self.count} (data.workers) or smaller data.slice_bytes: finished slices are kept"
            ) from None

    def local_result(self, future: Future[Result]) -> Result:
        """Wait for an item. Raises ClusterError, and ends the workers, if nothing moves."""
        done, _ = wait([future], timeout=self.stall_s)
        if not done:
            stuck = self.processes()
            self.end_processes()
            raise ClusterError(
                f"no item was finished for {self.stall_s:g} s on local workers "
                f"({', '.join(f'pid {process.pid}' for process in stuck)}); is a disk or a source stuck, or is one "
                "slice far larger than the others (data.slice_bytes)? Run the command again: finished slices are kept"
            )
        return future.result()

    def map_on_ray(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        if self.ray_cpus is None:
            self.ray_cpus = self.stack.enter_context(ray_cluster(self.count))
        import ray

        if self.ray_cpus < 1:
            raise ClusterError(
                "the Ray cluster at RAY_ADDRESS has no CPU, so nothing would ever run; add a node with CPUs, or unset "
                "RAY_ADDRESS, or write `executor: local` below data"
            )
        handed_out = HandedOut(
            ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(function), self.stall_s
        )
        try:
            yield from in_order(items, handed_out.ask, handed_out.result, IN_FLIGHT * self.ray_cpus)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ShardlineError | OSError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"Ray gave an item up after {RETRIES} tries ({error}); look at the cluster's memory and nodes, then "
                "run the command again: finished slices are kept"
            ) from None


@dataclass(eq=False)
class Asked:
    """An item that Ray was asked for, and where its result will be."""

    item: Any
    reference: Any


class HandedOut:
    """Items on a Ray cluster; when a host is lost, all that are not done are asked for once more.

    Ray does so by itself when the connection to a worker breaks. Of a host without power it hears nothing, not even
    that, and would wait for minutes. An item that is done twice does no harm: its file is written whole or not at all.
    """

    def __init__(self, task: Any, stall_s: float) -> None:
        self.task, self.stall_s = task, stall_s
        self.open: list[Asked] = []
        self.hosts = living_hosts()

    def ask(self, item: Any) -> Asked:
        asked = Asked(item, self.task.remote(item))
        self.open.append(asked)
        return asked

    def result(self, asked: Asked) -> Any:
        """Wait for an item. Raises ClusterError, with what is wanted and what is free, if nothing moves."""
        import ray

        deadline = time.monotonic() + self.stall_s
        while not ray.wait([asked.reference], timeout=min(LOOK_S, self.stall_s))[0]:
            if self.has_lost_a_host():
                deadline = time.monotonic() + self.stall_s
            if time.monotonic() > deadline:
                raise ClusterError(stalled_on_ray(self.stall_s))
        self.open.remove(asked)
        return ray.get(asked.reference)

    def has_lost_a_host(self) -> bool:
        """Look whether hosts are gone since the last look; if so, ask again for what they may have had."""
        before, self.hosts = self.hosts, living_hosts()
        lost = before - self.hosts
        if lost:
            log.warning("the Ray cluster has lost %d of its %d hosts: the others do their part", len(lost), len(before))
            for asked in self.open:
                asked.reference = self.task.remote(asked.item)
        return bool(lost)


def living_hosts() -> set[str]:
    import ray

    return {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]}


def stalled_on_ray(stall_s: float) -> str:
    """Say that nothing moves, what is wanted and what is free."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    return (
        f"no item was finished for {stall_s:g} s on Ray: each needs 1 CPU; the cluster has "
        f"{total.get('CPU', 0):g} CPUs, of which {free.get('CPU', 0):g} are free, on {len(living_hosts())} nodes; "
        "end what else runs there, or write `executor: local` below data. Finished slices are kept"
    )


def submitted(pool: ProcessPoolExecutor, function: Callable[[Item], Result], item: Item) -> Future[Result]:
    """Hand an item to a pool, which may start a process for it: one that never hears of Ctrl-C.

    A terminal sends that to every process, and each worker would answer with a traceback. Blocked signals are inherited
    from the thread that starts a process, so a worker is deaf from its first instruction on; here it is only put off.
    """
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, item)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def in_order(
    items: Sequence[Item], submit: Callable[[Item], Any], result: Callable[[Any], Result], limit: int
) -> Iterator[Result]:
    """Yield results in the order of the items while at most `limit` are handed out."""
    waiting: deque[Any] = deque()
    for item in items:
        if len(waiting) == limit:
            yield result(waiting.popleft())
        waiting.append(submit(item))
    while waiting:
        yield result(waiting.popleft())


def end_with_parent() -> None:
    """Let this worker end when the process that started it is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=exit_after, args=(parent,), daemon=True).start()


def exit_after(process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    os._exit(1)
