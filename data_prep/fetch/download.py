"""Download files into a cache: once for a whole cluster, with retries, and checked by size and hash."""

from __future__ import annotations

import hashlib
import logging
import random
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from cluster.disk.atomic_files import fsync_path, publish, sha256_of, write_text
from cluster.disk.locks import STALE_S, LockFile, wait_for_lock
from cluster.errors import ConfigError, DataError
from cluster.progress import Progress, thread_pool
from cluster.wording import count_of
from data_prep.fetch.resumable_transfer import (
    AttemptError,
    Count,
    PartialFile,
    Request,
    hub_request,
    receive_fsspec,
    receive_http,
)

log = logging.getLogger(__name__)

ATTEMPTS = 5  # in a row that bring no new bytes
TIMEOUT_S = 60.0  # without receiving a byte
LONGEST_BACKOFF_S = 60.0
LONGEST_RETRY_AFTER_S = 900.0  # a server that asks for a longer wait is an error
TRANSFERS = 16  # at a time
TRANSFERS_PER_HOST = 4


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file to fetch, and the size and hash that it must have."""

    url: str
    target: Path
    sha256: str | None = None
    size_bytes: int | None = None
    first_wait_s: float = 1.0
    timeout_s: float = TIMEOUT_S
    stale_s: float = STALE_S


class Host:
    """A server: a limited number of transfers at a time, and none while it has asked clients to wait."""

    def __init__(self) -> None:
        self.slots = threading.Semaphore(TRANSFERS_PER_HOST)
        self.paused_until = 0.0

    def pause(self, wait_s: float) -> None:
        self.paused_until = max(self.paused_until, time.monotonic() + wait_s)

    def wait(self) -> None:
        while (left_s := self.paused_until - time.monotonic()) > 0:
            time.sleep(left_s)


def cache_path(folder: Path, url: str) -> Path:
    """Return where a URL's file is cached; the file's name ends like the URL's path."""
    parts = urlsplit(url)
    if not parts.scheme or "://" not in url:
        raise ConfigError(
            f"data.sources: url {url}: expected an address such as https://...; for a file on this machine use 'path'"
        )
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(parts.path or parts.netloc).name)[-80:]
    return folder / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"


def fetch_all(downloads: Sequence[Download]) -> list[Path]:
    """Fetch files concurrently. Raises DataError that lists every failure; files that arrived are kept."""
    hosts = {urlsplit(download.url).netloc: Host() for download in downloads}
    sizes = [download.size_bytes for download in downloads if not is_here(download)]
    known = [size for size in sizes if size is not None]
    expected = sum(known) if len(known) == len(sizes) else None
    progress = Progress(f"fetching {count_of(len(downloads), 'file')}", expected, "bytes")

    def attempt(download: Download) -> str | None:
        host = hosts[urlsplit(download.url).netloc]
        try:
            with host.slots:
                fetch(download, host, progress.advance)
        except DataError as error:
            return str(error)
        except OSError as error:
            return f"{download.url}: cannot be stored: {error}; check the disk"
        return None

    with thread_pool(TRANSFERS) as pool, progress:
        problems = [problem for problem in pool.map(attempt, downloads) if problem is not None]
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        listed = "\n  ".join(problems)
        raise DataError(
            f"{len(problems)} of {len(downloads)} files could not be fetched; the others are kept:\n  {listed}"
        )
    return [download.target for download in downloads]


def fetch(download: Download, host: Host | None = None, count: Count = lambda size: None) -> Path:
    """Return the fetched file, from the cache if it matches the pinned size and hash.

    Of all processes that want the same target, one fetches it and the others wait. Raises DataError if the server
    refuses, sends a file that does not match, or fails too often.
    """
    note = download.target.with_name(f"{download.target.name}.failed")
    before = modified_ns(note)
    lock = LockFile(download.target.with_name(f"{download.target.name}.lock"), download.stale_s)
    with wait_for_lock(lock, lambda: is_here(download) or modified_ns(note) not in (None, before)) as is_ours:
        if is_ours:
            note.unlink(missing_ok=True)
            try:
                fetch_whole(download, lock.token, host or Host(), count)
            except DataError as error:
                write_text(note, str(error))  # for the processes that wait: they need not ask the server again
                raise
            return download.target
        if is_here(download):
            return download.target
        problem = text_of(note)
    if problem is None:  # one that came later asks the server again: wait for that, and not with the lock in hand
        return fetch(download, host, count)
    raise DataError(problem)


def text_of(note: Path) -> str | None:
    """Return what a file says; None if there is no file."""
    try:
        return note.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def modified_ns(path: Path) -> int | None:
    """Return a file's modification time in nanoseconds; None if there is no file."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def is_here(download: Download) -> bool:
    return download.target.is_file() and mismatch(download, download.target) is None


def fetch_whole(download: Download, token: str, host: Host, count: Count) -> None:
    """Try until the whole file is in place; each attempt resumes where the last one ended."""
    part = PartialFile(download.target, token)
    longest, failures = part.bytes, 0
    while True:
        host.wait()
        try:
            fetch_once(download, part, count)
            return
        except (AttemptError, httpx.TransportError) as error:
            failures = 1 if part.bytes > longest else failures + 1
            longest = max(longest, part.bytes)
            problem = str(error) or type(error).__name__
            log.warning("%s: attempt %d of %d failed: %s", download.url, failures, ATTEMPTS, problem)
            if failures == ATTEMPTS:
                raise DataError(
                    f"{download.url}: failed {ATTEMPTS} times in a row, the last time with: {problem}; check the "
                    "network and the server, then run the command again: what has been fetched is kept"
                ) from None
            wait(download, error, failures, host)


def wait(download: Download, error: Exception, failures: int, host: Host) -> None:
    """Wait as long as the server asks; otherwise back off exponentially, with jitter so that clients spread out."""
    asked_s = error.wait_s if isinstance(error, AttemptError) else None
    if asked_s is not None and asked_s > LONGEST_RETRY_AFTER_S:
        raise DataError(f"{download.url}: {error}, and asks for a retry in {asked_s:.0f} s; run the command again then")
    if asked_s is not None:
        host.pause(asked_s)
        return
    backoff_s = min(download.first_wait_s * 2 ** (failures - 1), LONGEST_BACKOFF_S)
    time.sleep(backoff_s * random.uniform(0.5, 1.5))


def fetch_once(download: Download, part: PartialFile, count: Count) -> None:
    """Fetch the file or its remaining bytes, check it and move it into place."""
    url = download.url
    in_repository = url.startswith("hf://") and not url.startswith("hf://buckets/")
    if in_repository or url.startswith(("http://", "https://")):
        request = hub_request(url) if in_repository else Request(url=url)
        request = replace(request, timeout_s=download.timeout_s, is_pinned=download.sha256 is not None)
        receive_http(request, part, count)
    else:
        receive_fsspec(url, part, count)
    problem = mismatch(download, part.path)
    if problem is not None:
        was_resumed = part.resumed
        part.discard()
        if was_resumed:
            raise AttemptError(f"{problem}, after resumed transfers")
        raise DataError(
            f"{download.url}: {problem}; correct the source's sha256 and size_bytes, or ask who changed the file"
        )
    fsync_path(part.path)
    size = part.bytes
    publish(part.path, download.target)
    part.discard()
    log.info("fetched %s, %d bytes", download.url, size)


def mismatch(download: Download, path: Path) -> str | None:
    """Return how a file differs from its pinned size and hash; None if it does not."""
    size = path.stat().st_size
    if download.size_bytes not in (None, size):
        return f"{size} bytes, expected size_bytes: {download.size_bytes}"
    if download.sha256 is not None and (found := sha256_of(path)) != download.sha256:
        return f"sha256 is {found}, expected {download.sha256}"
    return None
