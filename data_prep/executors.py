"""Map a function over many items, in local processes or on Ray; results come in the order of the items."""

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Literal, Self, TypeVar

from cluster.errors import ClusterError, ShardlineError
from cluster.launching.ray_cluster import ray_cluster
from cluster.wording import count_of

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Executor = Literal["local", "ray"]

IN_FLIGHT = 3  # items submitted per worker: no worker waits for its next item, and few tasks pile up in memory
LOOK_S = 5.0  # between two checks of the Ray cluster's hosts while waiting for an item
STALL_S = 600.0  # without a finished item; an item takes seconds
RETRIES = 3  # of an item whose Ray worker or node died


class Workers:
    """Worker processes that items are mapped over: started at the first use, ended with the `with` block.

    Functions must be importable by name. An exception that one raises is raised here, and items that have not
    started are dropped. If no item finishes for `stall_s`, a ClusterError says what it waits for.
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
            self.end_processes()  # else the pool's shutdown waits for running items
        self.stack.close()

    def end_processes(self) -> None:
        """Kill the local processes at once: a slice's file is written whole or not at all."""
        for process in self.processes():
            process.kill()

    def processes(self) -> list[multiprocessing.process.BaseProcess]:
        return (
            list((self.pool._processes or {}).values()) if self.pool is not None else []
        )  # there is no public attribute

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
                items, lambda item: submit(pool, function, item), self.local_result, IN_FLIGHT * self.count
            )
        except BrokenProcessPool:
            raise ClusterError(
                "a worker process was killed, most often because the memory was full; run the command again with "
                f"fewer workers than {self.count} (data.workers) or smaller data.slice_bytes: finished slices are kept"
            ) from None

    def local_result(self, future: Future[Result]) -> Result:
        """Wait for an item. Raises ClusterError, and ends the workers, if it stalls."""
        done, _ = wait([future], timeout=self.stall_s)
        if not done:
            stuck = self.processes()
            self.end_processes()
            raise ClusterError(
                f"no item was finished for {self.stall_s:g} s on local workers "
                f"({', '.join(f'pid {process.pid}' for process in stuck)}); check for a disk or source that hangs and "
                "for a slice far larger than the others (data.slice_bytes), then run the command again: finished "
                "slices are kept"
            )
        return future.result()

    def map_on_ray(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        if self.ray_cpus is None:
            self.ray_cpus = self.stack.enter_context(ray_cluster(self.count))
        import ray

        if self.ray_cpus < 1:
            raise ClusterError(
                "the Ray cluster at RAY_ADDRESS has no CPU, so no work can start; add a node with CPUs, or unset "
                "RAY_ADDRESS, or write `executor: local` below data"
            )
        submitted_items = SubmittedItems(
            ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(function), self.stall_s
        )
        try:
            yield from in_order(items, submitted_items.submit, submitted_items.result, IN_FLIGHT * self.ray_cpus)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ShardlineError | OSError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"an item failed on Ray after {RETRIES} retries ({error}); check the cluster's memory and nodes, then "
                "run the command again: finished slices are kept"
            ) from None


@dataclass(eq=False)
class SubmittedItem:
    """An item submitted to Ray, and the reference to its result."""

    item: Any
    reference: Any


class SubmittedItems:
    """Items submitted to a Ray cluster; when a host is lost, all unfinished items are submitted again.

    Ray retries by itself when the connection to a worker breaks. A host that loses power closes no connection, and Ray
    would wait for minutes. Running an item twice does no harm: its file is written whole or not at all.
    """

    def __init__(self, task: Any, stall_s: float) -> None:
        self.task, self.stall_s = task, stall_s
        self.open: list[SubmittedItem] = []
        self.hosts = living_hosts()

    def submit(self, item: Any) -> SubmittedItem:
        submitted = SubmittedItem(item, self.task.remote(item))
        self.open.append(submitted)
        return submitted

    def result(self, submitted: SubmittedItem) -> Any:
        """Wait for an item. Raises ClusterError, which names the cluster's free CPUs, if it stalls."""
        import ray

        deadline = time.monotonic() + self.stall_s
        while not ray.wait([submitted.reference], timeout=min(LOOK_S, self.stall_s))[0]:
            if self.has_lost_a_host():
                deadline = time.monotonic() + self.stall_s
            if time.monotonic() > deadline:
                raise ClusterError(stalled_on_ray(self.stall_s))
        self.open.remove(submitted)
        return ray.get(submitted.reference)

    def has_lost_a_host(self) -> bool:
        """Check whether hosts were lost since the last check; if so, submit all unfinished items again."""
        before, self.hosts = self.hosts, living_hosts()
        lost = before - self.hosts
        if lost:
            log.warning(
                "the Ray cluster lost %d of its %d hosts: their items run again on the others", len(lost), len(before)
            )
            for submitted in self.open:
                submitted.reference = self.task.remote(submitted.item)
        return bool(lost)


def living_hosts() -> set[str]:
    import ray

    return {str(node["NodeID"]) for node in ray.nodes() if node["Alive"]}


def stalled_on_ray(stall_s: float) -> str:
    """Return the message for a stalled item: what it needs and what is free."""
    import ray

    total, free = (float(found.get("CPU", 0)) for found in (ray.cluster_resources(), ray.available_resources()))
    return (
        f"no item was finished for {stall_s:g} s on Ray: each needs 1 CPU; the cluster has {total:g}"
        f" {'CPU' if total == 1 else 'CPUs'}, of which {free:g} {'is' if free == 1 else 'are'} free, on"
        f" {count_of(len(living_hosts()), 'node')}; end other work there, or write `executor: local` below data."
        " Finished slices are kept"
    )


def submit(pool: ProcessPoolExecutor, function: Callable[[Item], Result], item: Item) -> Future[Result]:
    """Submit an item to a pool; a process that the pool starts for it ignores Ctrl-C."""
    with delayed_interrupt():
        return pool.submit(function, item)


@contextmanager
def delayed_interrupt() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block; processes that are started in it never receive it.

    A terminal sends SIGINT to every process, and each worker would print a traceback. A process inherits the blocked
    signals of the thread that starts it, so blocking SIGINT here keeps it from the workers. It does not keep it from
    this process: the kernel may deliver it to another thread, and Python then runs the handler in the main thread, in
    the middle of starting a worker. So the handler is replaced as well.
    """
    received: list[tuple[int, FrameType | None]] = []
    is_main = threading.current_thread() is threading.main_thread()  # only it may set handlers, and only it runs them
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, lambda *received_now: received.append(received_now)) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if received and callable(handler):
            handler(*received[0])


def in_order(
    items: Sequence[Item], submit: Callable[[Item], Any], result: Callable[[Any], Result], limit: int
) -> Iterator[Result]:
    """Yield results in the order of the items, with at most `limit` submitted at a time."""
    waiting: deque[Any] = deque()
    for item in items:
        if len(waiting) == limit:
            yield result(waiting.popleft())
        waiting.append(submit(item))
    while waiting:
        yield result(waiting.popleft())


def end_with_parent() -> None:
    """End this worker when its parent process ends, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=exit_after, args=(parent,), daemon=True).start()


def exit_after(process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    os._exit(1)
