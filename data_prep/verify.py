"""Check every byte of a data folder against its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from cluster.disk.atomic_files import sha256_of
from cluster.errors import DataError
from cluster.progress import counted
from data_prep.shards import MANIFEST, SPLITS, ListedFile, Manifest, ShardInfo, check_size, read_manifest
from data_prep.shards.blocks import damaged_ranges

THREADS = 4  # hashing releases the interpreter


def verify(folder: Path) -> list[str]:
    """Return what is wrong with a data folder: one line each, with the file and the bytes; nothing if it is whole.

    It finds damaged, truncated, missing and swapped files, files that do not belong there, and a damaged manifest.
    """
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return [str(error)]
    return [*manifest_problems(folder, manifest), *unlisted(folder, manifest), *content_problems(folder, manifest)]


def listed(manifest: Manifest) -> list[ShardInfo | ListedFile]:
    """Return every file that the manifest lists."""
    return [*manifest.others, *(shard for shards in manifest.splits.values() for shard in shards)]


def manifest_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a problem if the manifest is valid but not byte for byte as it was written."""
    path = folder / MANIFEST
    written = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    if path.read_bytes() != written.encode():
        yield f"{path}: its bytes are not those that `prepare` wrote; run `shardline prepare RUN.yaml` again"


def unlisted(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the files that readers would find beside those of the manifest."""
    names = {item.path for item in listed(manifest)}
    for part in ("tokenizer", *SPLITS):
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and path.relative_to(folder).as_posix() not in names:
                yield f"{path}: the manifest does not list it; was it renamed, or put here by hand? Move it away"


def content_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the listed files."""
    items = listed(manifest)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda item: list(file_problems(folder, item)), items)
        for problems in counted(found, [item.bytes for item in items], "verifying", verified_bytes(manifest), "bytes"):
            yield from problems


def file_problems(folder: Path, item: ShardInfo | ListedFile) -> Iterator[str]:
    """Yield what is wrong with one file, down to its damaged blocks if it is a shard."""
    path = folder / item.path
    try:
        check_size(folder, item.path, item.bytes)
    except DataError as error:
        yield str(error)
        return
    if (found := sha256_of(path)) == item.sha256:
        return
    ranges = [(0, item.bytes)]
    if isinstance(item, ShardInfo):
        ranges = list(damaged_ranges(path, item.table_at, item.table_sha256)) or ranges
    for begin, end in ranges:
        yield (
            f"{path}: damaged in bytes {begin} to {end} (sha256 of the file is {found[:16]}..., the manifest says "
            f"{item.sha256[:16]}...); delete it and run `shardline prepare RUN.yaml` again"
        )


def verified_bytes(manifest: Manifest) -> int:
    """Return how many bytes the listed files have."""
    return sum(item.bytes for item in listed(manifest))
