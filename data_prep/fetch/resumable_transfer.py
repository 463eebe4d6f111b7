"""Transfer one file, over HTTP or by fsspec, into a partial file that later attempts resume."""

from __future__ import annotations

import email.utils
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cluster.errors import ConfigError, DataError

CHUNK_BYTES = 2**20
RETRIED = {408, 416, 425, 429}  # of the 4xx responses; all others are final
PART = ".part"

Count = Callable[[int], None]  # called with the number of bytes that arrived


class AttemptError(Exception):
    """This attempt failed, the next may succeed; `wait_s` is how long the server asks to wait."""

    def __init__(self, problem: str, wait_s: float | None = None) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to request; a pinned file may be resumed without knowing its version, because its hash is checked."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0
    is_pinned: bool = False


@dataclass(frozen=True)
class Version:
    """The server's description of a file, to detect that it changed between two attempts."""

    etag: str | None = None
    modified: str | None = None
    total: int | None = None

    @property
    def validator(self) -> str | None:
        """Return the value for If-Range: a strong ETag, else the date: a weak ETag does not promise equal bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def agrees(self, other: Version) -> bool:
        """Return whether the fields that both versions know are equal."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return all(mine is None or theirs is None or mine == theirs for mine, theirs in pairs)


class PartialFile:
    """The bytes received so far and the version that they belong to; only this process writes to it."""

    def __init__(self, target: Path, token: str) -> None:
        self.path = target.with_name(f"{target.name}.{token}{PART}")
        self.notes = self.path.with_name(f"{self.path.name}.json")
        self.version = Version()
        self.resumed = False
        self.adopt(target)

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def adopt(self, target: Path) -> None:
        """Resume from the longest partial file of a dead process, as a copy: that process may only be suspended."""
        left = [path for path in target.parent.glob(f"{target.name}.*{PART}") if path != self.path]
        for path in sorted(left, key=lambda path: path.stat().st_size, reverse=True):
            notes = path.with_name(f"{path.name}.json")
            if not self.path.exists() and notes.exists():
                shutil.copyfile(path, self.path)
                shutil.copyfile(notes, self.notes)
                self.version = Version(**json.loads(notes.read_text(encoding="utf-8")))
            path.unlink(missing_ok=True)
            notes.unlink(missing_ok=True)

    def begin(self, version: Version) -> None:
        """Start the file from the beginning, with its version."""
        self.discard()
        self.path.touch()
        self.version = version
        self.notes.write_text(json.dumps(asdict(version)), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.version = Version()
        self.resumed = False

    def append(self, chunks: Iterable[Any], count: Count) -> None:
        """Write the arriving chunks. Raises AttemptError if the length differs from the version's."""
        with self.path.open("ab") as stream:
            for chunk in chunks:
                stream.write(chunk)
                count(len(chunk))
        size, total = self.bytes, self.version.total
        if total is not None and size < total:
            raise AttemptError(f"the body ended after {size} of {total} bytes")
        if total is not None and size > total:
            self.discard()
            raise AttemptError(f"the body is longer than {total} bytes")


def hub_request(address: str) -> Request:
    """Return the HTTP request for an hf:// address; the token is sent to the Hub only, not to redirect targets."""
    from huggingface_hub import HfFileSystem, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, exported lazily

    try:
        place: Any = HfFileSystem().resolve_path(address)
    except (FileNotFoundError, PermissionError, NotImplementedError) as error:
        raise DataError(f"{address}: {error}; check the address, or log in with `hf auth login`") from None
    except (OSError, httpx.HTTPError) as error:
        raise AttemptError(f"{type(error).__name__}: {error}") from None
    url = hf_hub_url(place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision)
    return Request(url=url, headers=build_hf_headers())


def receive_http(request: Request, part: PartialFile, count: Count) -> None:
    """Receive the file or its remaining bytes. Raises AttemptError or httpx.TransportError to retry, else DataError."""
    headers = {**request.headers, "Accept-Encoding": "identity"}  # so that bytes and length are those of the file
    have = part.bytes
    if have and (part.version.validator or request.is_pinned):  # else two versions could not be told apart
        headers["Range"] = f"bytes={have}-"
        if part.version.validator:
            headers["If-Range"] = part.version.validator
    with httpx.stream(
        "GET", request.url, headers=headers, follow_redirects=True, timeout=request.timeout_s
    ) as response:
        check_status(request.url, response, part)
        version = version_of(response)
        if response.status_code == 206:
            if range_start(response) != have or not version.agrees(part.version):
                part.discard()
                raise AttemptError("the file changed on the server while it was fetched")
            part.resumed = True
        else:
            part.begin(version)
        part.append(response.iter_raw(), count)  # unbuffered: buffered bytes are lost when the connection drops


def check_status(url: str, response: httpx.Response, part: PartialFile) -> None:
    """Raise DataError for a final error status, AttemptError for one worth a retry."""
    status = response.status_code
    answer = f"the server answered {status} {response.reason_phrase}"
    if status == 416:
        part.discard()  # the partial file is longer than the file is now
    if status >= 500 or status in RETRIED:
        raise AttemptError(answer, retry_after_s(response.headers.get("Retry-After"), time.time()))
    if status not in (200, 206) or (status == 206 and not part.bytes):
        raise DataError(f"{url}: {answer} instead of the file; check the address in data.sources")


def retry_after_s(value: str | None, now: float) -> float | None:
    """Return the wait in seconds that a Retry-After header asks for; it holds seconds or a date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def version_of(response: httpx.Response) -> Version:
    """Return the version of the whole file that a response describes."""
    headers = response.headers
    total = headers.get("Content-Length")
    if response.status_code == 206:
        total = headers.get("Content-Range", "").rpartition("/")[2]
    return Version(
        etag=headers.get("ETag"),
        modified=headers.get("Last-Modified"),
        total=int(total) if total and total.isdigit() else None,
    )


def range_start(response: httpx.Response) -> int | None:
    found = re.fullmatch(r"bytes (\d+)-\d+/.*", response.headers.get("Content-Range", ""))
    return int(found.group(1)) if found else None


def receive_fsspec(address: str, part: PartialFile, count: Count) -> None:
    """Receive the file or its remaining bytes by fsspec. Raises AttemptError to retry, else DataError."""
    try:
        system, path = open_address(address)
        info = system.info(path)
        version = Version(etag=info_text(info, "ETag", "etag", "oid", "md5Hash"), total=info.get("size"))
        if part.bytes and part.version.etag and version.agrees(part.version):
            part.resumed = True
        else:
            part.begin(version)
        with system.open(path, "rb") as stream:
            stream.seek(part.bytes)
            part.append(iter(lambda: stream.read(CHUNK_BYTES), b""), count)
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(
            f"{address}: {type(error).__name__}: {error}; check the address, or log in to its store"
        ) from None
    except (OSError, httpx.HTTPError) as error:
        raise AttemptError(f"{type(error).__name__}: {error}") from None


def info_text(info: dict[str, Any], *names: str) -> str | None:
    """Return the first of these entries that is present, as text."""
    return next((str(info[name]) for name in names if info.get(name)), None)


def open_address(address: str) -> tuple[Any, str]:
    """Return an address's fsspec file system and the path in it. Raises ConfigError if its library is missing."""
    import fsspec

    scheme = address.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        extra = {"s3": "s3", "gs": "gs", "gcs": "gs"}.get(scheme)
        fix = f"run `pip install --editable '.[{extra}]'` in Shardline's folder" if extra else "check its scheme"
        raise ConfigError(f"data.sources: url {address}: {error}; {fix}") from None
    return system, str(path)
