"""List the files at a source's address and fetch them into the cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.errors import DataError
from cluster.model_files import HUB_TIMEOUT_S, reason_of
from data_prep.config import SourceConfig
from data_prep.fetch.download import Download, cache_path, fetch_all
from data_prep.fetch.hub_layout import DESCRIPTION, OTHER_SPLIT, is_description, is_of, split_of
from data_prep.fetch.resumable_transfer import open_address
from data_prep.files.formats import format_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One remote file, with the size and hash that its store reports."""

    address: str
    size_bytes: int | None = None
    sha256: str | None = None


def fetch_sources(sources: Sequence[SourceConfig], folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Fetch the files of all sources that have an address, and return them by address.

    Descriptions, files of other splits and files of unknown formats are listed but not fetched; the path of the first
    two is the reason.
    """
    wanted: list[Download] = []
    files: dict[str, list[tuple[str, Path]]] = {}
    for source in sources:
        if source.address is None:
            continue
        remotes = list_address(source)
        in_split = {remote.address for remote in remotes if is_of_split(remote, remotes, source)}
        entries = files.setdefault(source.address, [])
        for remote in remotes:
            name = remote.address
            path = cache_path(folder, name)
            if source.dataset is not None and is_description(name):
                path = Path(DESCRIPTION)
            elif name not in in_split:
                path = Path(OTHER_SPLIT)
            elif format_of(path.name, source.format) is not None:
                wanted.append(Download(url=name, target=path, sha256=remote.sha256, size_bytes=remote.size_bytes))
            entries.append((name, path))
    fetch_all(list({download.target: download for download in wanted}.values()))
    return files


def require_dataset(source: SourceConfig) -> None:
    """Raise DataError, within HUB_TIMEOUT_S, if the Hub does not answer or lacks a source's dataset."""
    if source.dataset is None or not str(source.address).startswith("hf://"):
        return
    from huggingface_hub import HfApi, constants  # takes 0.4 s to import

    elsewhere = (
        f"on a machine with network access run `hf download {source.dataset.partition('@')[0]} --repo-type dataset "
        "--local-dir FOLDER`, and give that folder as `path` instead of `dataset`"
    )
    if constants.HF_HUB_OFFLINE:
        raise DataError(f"data.sources: dataset {source.dataset}: HF_HUB_OFFLINE is set; {elsewhere}, or unset it")
    name, _, revision = source.dataset.partition("@")
    try:
        HfApi().dataset_info(name, revision=revision or None, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001  # the HTTP library's own errors, and the library varies by version
        raise DataError(
            f"data.sources: dataset {source.dataset}: the Hub does not provide it ({reason_of(error)}); check its name "
            f"and the network; {elsewhere}"
        ) from None


def list_address(source: SourceConfig) -> list[Remote]:
    """Return the files at an address. Raises DataError if there are none."""
    require_dataset(source)
    address = str(source.address)
    if address.startswith(("http://", "https://")):
        return [Remote(address=address, size_bytes=source.size_bytes, sha256=source.sha256)]
    system, path = open_address(address)
    try:
        if any(mark in path for mark in "*?["):
            infos = system.glob(path, detail=True)
        elif system.isdir(path):
            infos = system.find(path, detail=True)
        else:
            infos = {path: system.info(path)}
    except (OSError, httpx.HTTPError) as error:
        raise DataError(f"data.sources: {address}: {type(error).__name__}: {error}; check the address") from None
    found = [remote_of(system, path, info, source) for path, info in sorted(infos.items()) if info["type"] == "file"]
    if not found:
        raise DataError(f"data.sources: {address}: names no file; check the address")
    if len(found) > 1 and source.sha256 is not None:
        raise DataError(f"data.sources: {address}: sha256 is given, but the address names {len(found)} files; name one")
    return found


def remote_of(system: Any, path: str, info: dict[str, Any], source: SourceConfig) -> Remote:
    """Return a file as its store describes it; the Hub gives the sha256 of large files."""
    large = info.get("lfs") or {}
    sha256 = large.get("sha256") if isinstance(large, dict) else getattr(large, "sha256", None)
    address = str(system.unstrip_protocol(path))
    size = source.size_bytes or info.get("size")
    return Remote(address=address, size_bytes=size, sha256=source.sha256 or sha256)


def is_of_split(remote: Remote, remotes: Sequence[Remote], source: SourceConfig) -> bool:
    """Return whether a dataset's file belongs to the source's split; if no name contains a split, every file does."""
    if source.dataset is None:
        return True
    split = source.split or "train"
    told = any(split_of(other.address) or is_of(other.address, split) for other in remotes)
    return not told or is_of(remote.address, split)
