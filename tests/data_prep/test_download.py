from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from cluster.errors import ConfigError, DataError
from data_prep.download import Download, cache_path, fetch


@pytest.fixture
def download(server, tmp_path):
    url = f"{server.address}/books/walden.txt?version=1"
    return Download(url=url, target=cache_path(tmp_path, url), first_wait_s=0.01)


@pytest.mark.parametrize("faults", [[], ["500"], ["short"], ["503", "short", "500", "429"]])
def test_a_file_arrives_whole_whatever_the_server_does_first(server, download, faults):
    server.faults = list(faults)

    path = fetch(download)

    assert path.read_bytes() == server.body
    assert path.name.endswith("-walden.txt")
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert server.requests == len(faults) + 1


def test_a_cached_file_is_fetched_again_only_when_it_misses_its_pins(server, download):
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
        (["500"] * 9, {}, "failed 5 times, the last time with: the server answered 500", 5),
        (["short"] * 9, {}, "failed 5 times", 5),
        ([], {"size_bytes": 7}, "1300 bytes, expected size_bytes: 7", 1),
        ([], {"sha256": "0" * 64}, "sha256 is .*, expected 0000", 1),
    ],
)
def test_what_cannot_be_fetched_is_a_clear_error_and_leaves_nothing(server, download, faults, pins, message, requests):
    server.faults = list(faults)

    with pytest.raises(DataError, match=message):
        fetch(replace(download, **pins))

    assert server.requests == requests
    assert not any(download.target.parent.glob("*")) or not download.target.exists()


def test_an_address_without_a_scheme_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected https://"):
        cache_path(tmp_path, "example.org/books.txt")


def test_a_url_source_is_prepared_like_a_file(server, prepared):
    server.body = "".join(f"a sentence, number {n}\n" for n in range(50)).encode()

    manifest = prepared({"url": f"{server.address}/a.txt", "name": "web"}, validation_fraction=0.0)

    assert manifest.files[0].path == f"{server.address}/a.txt"
    assert manifest.documents["web"]["kept"] == 1
