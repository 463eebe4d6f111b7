"""Whole files over http(s) into a cache: sized, hashed, durable, or absent."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from cluster.errors import ConfigError, DataError
from cluster.files import PARTIAL, sha256_of, whole_file
from data_prep.config import SourceConfig

log = logging.getLogger(__name__)

ATTEMPTS = 5
TIMEOUT_S = 60.0
RETRIED = {408, 425, 429}  # of the 4xx answers; all others are final


@dataclass(frozen=True, kw_only=True)
class Download:
    """One file to fetch, and what it must turn out to be."""

    url: str
    target: Path
    sha256: str | None = None
    size_bytes: int | None = None
    first_wait_s: float = 1.0


class AttemptError(Exception):
    """Raised inside this file only: this attempt failed, the next may not."""


def downloads_of(sources: list[SourceConfig], folder: Path) -> list[Download]:
    """Return what the sources want fetched; the cache lies below the data folder."""
    return [
        Download(
            url=source.url, target=cache_path(folder, source.url), sha256=source.sha256, size_bytes=source.size_bytes
        )
        for source in sources
        if source.url is not None
    ]


def cache_path(folder: Path, url: str) -> Path:
    """Return where a URL's file is kept; its name ends as the URL's path does."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ConfigError(f"data.sources: url {url}: expected http:// or https://; name a file on a disk with 'path'")
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(parts.path).name)[-80:]
    return folder / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"


def fetch(download: Download) -> Path:
    """Return the fetched file, from the cache if it satisfies the pins.

    Connection errors, answers of 5xx and 429, and bodies that end early are tried again. Raises DataError if the
    server refuses, gives something else than the pins say, or fails every time.
    """
    if download.target.is_file() and mismatch(download, download.target) is None:
        return download.target
    for rest in download.target.parent.glob(f"{download.target.name}.*{PARTIAL}"):
        rest.unlink()  # of a process that was killed
    for attempt in range(ATTEMPTS):
        try:
            fetch_once(download)
            return download.target
        except (AttemptError, httpx.TransportError) as error:
            problem = str(error) or type(error).__name__
            wait_s = download.first_wait_s * 2**attempt
            log.warning("%s: attempt %d of %d failed: %s", download.url, attempt + 1, ATTEMPTS, problem)
            if attempt + 1 < ATTEMPTS:
                time.sleep(wait_s)
    raise DataError(
        f"{download.url}: failed {ATTEMPTS} times, the last time with: {problem}; "
        "look at the network or the server, then run the command again: what is fetched already is kept"
    )


def fetch_once(download: Download) -> None:
    """Stream the body into the target, whole or not at all. Raises AttemptError or TransportError to try again."""
    headers = {"Accept-Encoding": "identity"}  # so that the bytes and their number are the file's own
    with httpx.stream("GET", download.url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S) as response:
        check_status(download.url, response)
        with whole_file(download.target) as partial:
            with partial.open("wb") as stream:
                for chunk in response.iter_raw():
                    stream.write(chunk)
            check_length(response, partial)
            if (problem := mismatch(download, partial)) is not None:
                raise DataError(f"{download.url}: {problem}; correct the source's pins, or ask who changed the file")
    log.info("fetched %s, %d bytes", download.url, download.target.stat().st_size)


def check_status(url: str, response: httpx.Response) -> None:
    """Raise DataError for an answer that will not change, AttemptError for one that may."""
    answer = f"the server answered {response.status_code} {response.reason_phrase}"
    if response.status_code >= 500 or response.status_code in RETRIED:
        raise AttemptError(answer)
    if response.status_code != 200:
        raise DataError(f"{url}: {answer} instead of the file; check the address in data.sources")


def check_length(response: httpx.Response, partial: Path) -> None:
    """Raise AttemptError if the body is not as long as the server announced."""
    announced = response.headers.get("Content-Length")
    size = partial.stat().st_size
    if announced is not None and size != int(announced):
        raise AttemptError(f"the body ended after {size} of {announced} bytes")


def mismatch(download: Download, path: Path) -> str | None:
    """Say in what a file differs from the pins; None if it does not."""
    size = path.stat().st_size
    if download.size_bytes not in (None, size):
        return f"{size} bytes, expected size_bytes: {download.size_bytes}"
    if download.sha256 is not None and (found := sha256_of(path)) != download.sha256:
        return f"sha256 is {found}, expected {download.sha256}"
    return None
