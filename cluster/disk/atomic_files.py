"""Files and folders that are whole or absent (write beside, fsync, rename), and digests of what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError

FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file may not become larger here (`ulimit -f`)",
}
PARTIAL = ".partial"  # nothing with this suffix is ever read as a result


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes as lower-case hex."""
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # read further ahead
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return the one spelling of `value` that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON value's canonical spelling as lower-case hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fsync_path(path: Path) -> None:
    """Make a file's bytes, or a folder's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(partial: Path, final: Path) -> None:
    """Rename a finished file or folder into place and make the new name durable."""
    partial.rename(final)
    fsync_path(final.parent)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk or an exhausted quota into a ClusterError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        here = next(path for path in (folder, *folder.parents) if path.exists())
        raise ClusterError(
            f"{folder}: {FULL[error.errno]} ({shutil.disk_usage(here).free / 2**20:,.1f} MiB are free); make room, or "
            "name a folder on a larger disk in the YAML, and run the command again: what is finished is kept"
        ) from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; on success it is made durable and renamed to `path`, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        fsync_path(partial)
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on success it replaces `path`, on failure `path` is as it was.

    No file system renames a folder over another one, and NFS exchanges no names, so an existing folder is moved aside
    before the new one takes its name. After a crash between the two renames, the next call first puts the old one back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    restore_replaced(path)
    partial = path.with_name(path.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk, its space is needed
        raise
    for item in [*partial.rglob("*"), partial]:
        fsync_path(item)
    if path.exists():
        path.rename(replaced_path(path))
    publish(partial, path)
    shutil.rmtree(replaced_path(path), ignore_errors=True)


def replaced_path(path: Path) -> Path:
    """Return where a folder waits while another one takes its name."""
    return path.with_name(path.name + ".old")


def restore_replaced(path: Path) -> None:
    """Undo a replacement that a crash cut short: put the old folder back, or remove it if the new one is in place."""
    old = replaced_path(path)
    if old.exists() and not path.exists():
        publish(old, path)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all, readable by people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
