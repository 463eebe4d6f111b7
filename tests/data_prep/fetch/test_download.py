from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.disk.locks import LockFile
from cluster.errors import ConfigError, DataError
from data_prep.config import SourceConfig
from data_prep.fetch import download as module
from data_prep.fetch.download import Download, cache_path, fetch, fetch_all
from data_prep.fetch.remote_listing import fetch_sources
from data_prep.fetch.resumable_transfer import retry_after_s
from data_prep.shards import Manifest
from tests.data_prep.conftest import Server

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def download(server: Server, tmp_path: Path) -> Download:
    url = f"{server.address}/books/walden.txt?version=1"
    return Download(url=url, target=cache_path(tmp_path, url), first_wait_s=0.01)


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["500"],
        ["drop"],
        ["short"],
        ["stall"],
        ["503", "drop", "short", "500", "429", "408"],
        ["short", "whole"],
        ["short", "shifted"],
        ["short", "416"],
        ["short", "changed"],
        ["short", "short", "short", "short", "short", "short", "short"],
    ],
)
def test_a_file_arrives_whole_whatever_the_server_does_first(
    server: Server, download: Download, faults: list[str]
) -> None:
    server.faults = list(faults)
    timeout_s = 3.0 if "stall" in faults else download.timeout_s  # an answer that comes late is asked for again

    path = fetch(replace(download, timeout_s=timeout_s))

    assert path.read_bytes() == server.body
    assert path.name.endswith("-walden.txt")
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert server.requests == len(faults) + (0 if faults[-1:] in (["whole"], ["changed"]) else 1)


def test_an_attempt_continues_where_the_last_one_ended(server: Server, download: Download) -> None:
    server.faults = ["short", "short"]

    fetch(download)

    assert server.ranges == [None, "bytes=650-", "bytes=975-"]


def test_a_file_that_is_gone_again_once_its_lock_is_ours_is_fetched(
    server: Server, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_here, answers = module.is_here, [False, True, False]  # before the lock, in it, and after
    monkeypatch.setattr(module, "is_here", lambda it: answers.pop(0) if answers else is_here(it))
    assert fetch(download).read_bytes() == server.body and server.requests == 1


def test_without_a_validator_only_a_pinned_file_is_resumed(server: Server, download: Download) -> None:
    server.etag, server.faults = None, ["short", "none", "short"]
    fetch(download)
    pinned = replace(download, target=download.target.with_name("b"), sha256=hashlib.sha256(server.body).hexdigest())
    fetch(pinned)

    assert server.ranges == [None, None, None, "bytes=650-"]


def test_what_a_killed_process_left_is_gone_on_with(server: Server, download: Download) -> None:
    server.faults = ["short", *["500"] * 4, "500"]
    with pytest.raises(DataError, match="failed 5 times"):
        fetch(download)
    assert not download.target.exists()

    assert fetch(download).read_bytes() == server.body

    assert server.ranges[-1] == "bytes=650-"
    assert [p.name for p in download.target.parent.iterdir()] == [download.target.name]


def test_pieces_that_do_not_fit_their_pin_are_fetched_again_as_a_whole(server: Server, download: Download) -> None:
    server.etag, server.faults = None, ["short", "garbled"]
    pinned = replace(download, sha256=hashlib.sha256(server.body).hexdigest())

    assert fetch(pinned).read_bytes() == server.body
    assert server.ranges == [None, "bytes=650-", None]


def test_a_cached_file_is_fetched_again_only_when_it_misses_its_pins(server: Server, download: Download) -> None:
    fetch(download)
    fetch(download)
    assert server.requests == 1

    server.body = b"another"
    pinned = replace(download, sha256=hashlib.sha256(b"another").hexdigest(), size_bytes=7)

    assert fetch(pinned).read_bytes() == b"another"
    assert server.requests == 2


@pytest.mark.parametrize(
    ("faults", "pins", "message", "requests"),
    [
        (["404"], {}, "the server answered 404 Not Found instead of the file; check the address", 1),
        (["500"] * 9, {}, "failed 5 times in a row, the last time with: the server answered 500", 5),
        (["drop"] * 9, {}, "failed 5 times", 5),
        (["429:1000"], {}, "asks for a retry in 1000 s", 1),
        ([], {"size_bytes": 7}, "1300 bytes, expected size_bytes: 7", 1),
        ([], {"sha256": "0" * 64}, "sha256 is .*, expected 0000", 1),
        (["garbled"], {"sha256": hashlib.sha256(b"one document\n" * 100).hexdigest()}, "sha256 is .*, expected", 1),
    ],
)
def test_what_cannot_be_fetched_is_a_clear_error_and_never_a_file(
    server: Server, download: Download, faults: list[str], pins: dict[str, Any], message: str, requests: int
) -> None:
    server.faults = list(faults)

    with pytest.raises(DataError, match=message):
        fetch(replace(download, **pins))

    assert server.requests == requests
    assert not download.target.exists()


def test_a_server_that_asks_for_rest_is_given_it_by_all_transfers(server: Server, tmp_path: Path) -> None:
    server.faults = ["429:1"]
    urls = [f"{server.address}/{n}.txt" for n in range(9)]
    began = time.monotonic()

    fetch_all([Download(url=url, target=cache_path(tmp_path, url), first_wait_s=0.01) for url in urls])

    assert time.monotonic() - began >= 1.0 and server.requests == 10
    assert retry_after_s("7", 0.0) == 7.0 and retry_after_s("Thu, 01 Jan 1970 00:01:00 GMT", 20.0) == 40.0
    assert retry_after_s("soon", 0.0) is None


def test_a_host_gets_a_few_requests_at_a_time(server: Server, tmp_path: Path) -> None:
    server.delay_s = 0.3
    urls = [f"{server.address}/{n}.txt" for n in range(12)]

    fetch_all([Download(url=url, target=cache_path(tmp_path, url)) for url in urls])

    assert 1 < server.most_at_once <= module.TRANSFERS_PER_HOST


def test_all_that_failed_is_listed_at_the_end_and_the_rest_is_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRANSFERS", 1)  # one after the other: the faults are given out in this order
    server.faults = ["404", "none", "403"]
    downloads = [Download(url=f"{server.address}/{n}.txt", target=tmp_path / f"{n}.txt") for n in range(4)]

    with pytest.raises(DataError, match=r"2 of 4 files could not be fetched; the others are kept:\n  .*404.*\n  .*403"):
        fetch_all(downloads)

    assert len([path for path in tmp_path.iterdir() if path.suffix == ".txt"]) == 2


FETCHER = """
import sys
from pathlib import Path
from cluster.errors import DataError
from data_prep.fetch.download import Download, fetch
print("ready", flush=True)
sys.stdin.readline()
try:
    print(fetch(Download(url=sys.argv[1], target=Path(sys.argv[2]), first_wait_s=0.01)).stat().st_size)
except DataError as error:
    print(error)
"""


def run_fetchers(count: int, url: str, target: Path) -> list[str]:
    """Run processes that want the same file, all from the moment on that the last of them is ready."""
    command = [sys.executable, "-c", FETCHER, url, str(target)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(count)]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None  # `communicate` would flush it
    return [process.communicate()[0].strip() for process in started]


def test_of_many_processes_one_fetches_and_all_have_the_file(server: Server, tmp_path: Path) -> None:
    server.faults, server.delay_s = ["short"], 1.0

    results = run_fetchers(6, f"{server.address}/a.txt", tmp_path / "a.txt")

    assert results == ["1300"] * 6
    assert server.requests == 2 and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.soak
def test_of_64_processes_one_fetches_and_all_have_the_file(server: Server, tmp_path: Path) -> None:
    server.delay_s = 3.0

    assert run_fetchers(64, f"{server.address}/a.txt", tmp_path / "a.txt") == ["1300"] * 64
    assert server.requests == 1


def test_who_waits_for_a_transfer_that_fails_does_not_ask_again(server: Server, tmp_path: Path) -> None:
    server.faults, server.delay_s = ["404"] * 4, 3.0

    results = run_fetchers(3, f"{server.address}/a.txt", tmp_path / "a.txt")

    assert all("404 Not Found" in result for result in results)
    assert server.requests == 1


def test_the_lock_of_a_dead_process_is_broken_and_a_fresh_one_is_not(server: Server, download: Download) -> None:
    stale = replace(download, stale_s=0.2)
    stale.target.parent.mkdir(parents=True)
    lock = stale.target.with_name(f"{stale.target.name}.lock")
    assert LockFile(lock).try_take()
    LockFile(lock, stale_s=60.0).break_stale()
    assert lock.exists()

    assert fetch(stale).read_bytes() == server.body
    assert not lock.exists()


def test_an_address_without_a_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected an address such as https://"):
        cache_path(tmp_path, "example.org/books.txt")


def test_a_url_source_is_prepared_like_a_file(server: Server, prepared: Callable[..., Manifest]) -> None:
    server.body = "".join(f"a sentence, number {n}\n" for n in range(50)).encode()

    manifest = prepared({"url": f"{server.address}/a.txt", "name": "web"}, validation_fraction=0.0)

    assert manifest.files[0].path == f"{server.address}/a.txt"
    assert manifest.documents["web"]["kept"] == 1


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A folder as an object store would show it: through fsspec."""
    folder = tmp_path / "store" / "data"
    folder.mkdir(parents=True)
    for name in ("train-0.txt", "train-1.txt", "test-0.txt", "photo.png"):
        (folder / name).write_text(f"the text of {name}")
    return f"file://{tmp_path}/store"


@pytest.mark.parametrize(("pattern", "count"), [("", 3), ("/data/train-*.txt", 2), ("/data/test-0.txt", 1)])
def test_an_fsspec_address_is_a_folder_a_glob_or_a_file(
    store: str, tmp_path: Path, prepared: Callable[..., Manifest], pattern: str, count: int
) -> None:
    manifest = prepared({"url": store + pattern, "name": "store"}, validation_fraction=0.0)

    assert [file.path for file in manifest.files] == sorted(file.path for file in manifest.files)
    assert manifest.documents["store"]["kept"] == count == len(manifest.files)
    assert manifest.documents["store"]["passed_over"] == ({".png": 1} if not pattern else {})


def test_an_fsspec_address_of_nothing_is_named(store: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"store/nothing\.txt: FileNotFoundError"):
        fetch_sources([SourceConfig(url=f"{store}/nothing.txt")], tmp_path)
    with pytest.raises(DataError, match="names no file"):
        fetch_sources([SourceConfig(url=f"{store}/*.csv")], tmp_path)


def test_an_address_whose_library_is_missing_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)

    with pytest.raises(ConfigError, match=r"pip install --editable '\.\[s3\]'"):
        fetch_sources([SourceConfig(url="s3://bucket/a.txt")], tmp_path)


@pytest.mark.parametrize(("split", "names"), [("train", ["train-0", "train-1"]), ("test", ["test-0"])])
def test_of_a_dataset_only_the_files_of_the_split_are_fetched(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, names: list[str]
) -> None:
    monkeypatch.setattr(SourceConfig, "address", property(lambda source: store))

    (files,) = fetch_sources([SourceConfig(dataset="owner/name", split=split)], tmp_path).values()

    assert [Path(name).stem for name, path in files if path.exists()] == names
    assert len(files) == 4
