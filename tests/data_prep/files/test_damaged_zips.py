"""Of a zip that is cut off, the members before the cut are read and the damage is counted."""

from __future__ import annotations

import io
import logging
import random
import zipfile
from pathlib import Path

import pytest

from data_prep.files.archives import unpack
from data_prep.files.formats import Format


class Stream(io.RawIOBase):
    """Something that cannot be written anew: sizes follow their members then."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.data += bytes(data)  # type: ignore[call-overload]
        return len(bytes(data))  # type: ignore[call-overload]


def zipped(members: dict[str, bytes], target: io.BytesIO | Stream, method: int) -> bytes:
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target.getvalue() if isinstance(target, io.BytesIO) else target.data


@pytest.mark.parametrize("target", [io.BytesIO, Stream])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_whole_members_before_a_cut_are_read(
    tmp_path: Path, target: type, method: int, caplog: pytest.LogCaptureFixture
) -> None:
    letters = random.Random(1)
    texts = {f"d/é{n}.txt": bytes(letters.choices(range(97, 123), k=5000 * (n % 3))) for n in range(12)}
    data = zipped({**texts, "x.unknown": b"x" * 9000}, target(), method)
    (tmp_path / "a.zip").write_bytes(data[: data.index("d/é8.txt".encode()) + 200])
    caplog.set_level(logging.INFO)

    members, folder = unpack(tmp_path / "a.zip", Format(kind="zip"), tmp_path / "cache")

    found = {one.name: (folder / one.file).read_bytes() for one in members if one.file}
    unknown_ends = target is Stream and method == zipfile.ZIP_STORED
    assert found == ({} if unknown_ends else {name: texts[name] for name in list(texts)[:8]})
    assert [one.problem for one in members if one.problem] == ["damaged archive (BadZipFile)"]
    assert f"{len(found)} members; damaged archive" in caplog.text


def test_a_member_with_another_checksum_ends_what_is_read(tmp_path: Path) -> None:
    data = zipped({f"{n}.txt": b"goose " * 9 for n in range(5)}, io.BytesIO(), zipfile.ZIP_STORED)
    at = data.index(b"2.txt") + 9
    (tmp_path / "a.zip").write_bytes((data[:at] + b"X" + data[at + 1 :])[:-30])

    members, folder = unpack(tmp_path / "a.zip", Format(kind="zip"), tmp_path / "cache")

    assert [one.name for one in members] == ["", "0.txt", "1.txt"]
    assert len(list(folder.glob("*.txt"))) == 2
