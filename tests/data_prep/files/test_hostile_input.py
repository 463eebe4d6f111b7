"""Whatever a file does, its neighbours are read, nothing is lost without a count, and memory stays bounded."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep.clean.cleaning import Cleaner
from data_prep.config import CleaningConfig, DataConfig, SourceConfig
from data_prep.fetch.sources import cut_slices, find_corpus
from data_prep.files import archives
from data_prep.files import bounded_io as streams
from data_prep.prepare import prepare
from data_prep.read.pages import extraction as pages
from data_prep.read.parts import Rejected, read_part

ROOT = Path(__file__).resolve().parents[3]
GOOD = [f"a good document, number {n}" for n in range(2000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in GOOD).encode()


def read(path: Path, **source: Any) -> tuple[list[str], Counter[str], Any]:
    """Return the kept texts, the rejected by reason, and what was passed over."""
    corpus = find_corpus([SourceConfig(path=str(path), **source)], {}, path.parent / "unpacked")
    cleaner = Cleaner(CleaningConfig())
    found = [item for parts in cut_slices(corpus, 2**20) for part in parts for item in read_part(part)]
    items = [item if isinstance(item, Rejected) else cleaner.cleaned(item) for item in found]
    kept = [item.turns[0].text for item in items if not isinstance(item, Rejected)]
    (passed_over,) = corpus.passed_over.values()
    return kept, Counter(item.reason for item in items if isinstance(item, Rejected)), passed_over


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.txt").write_text("good")
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"caf\xe9", "not UTF-8: write its `encoding`, such as cp1252"),
        ("a.txt", b"\0\x01\x02" * 99, "not text: it has NUL bytes"),
        ("a.txt", b"", "empty"),
        ("a.parquet", b"", "empty"),
        ("a.parquet", b"PAR1 no", "damaged Parquet (ArrowInvalid)"),
        ("a.arrow", b"ARROW1 no", "damaged Arrow (ArrowInvalid)"),
        ("a.txt.gz", gzip.compress(b"text" * 999, mtime=0)[:-9], "damaged compression (EOFError)"),
        ("a.txt.gz", b"no gzip", "damaged compression (BadGzipFile)"),
        ("a.txt.xz", b"no xz", "damaged compression (LZMAError)"),
        ("a.txt.zst", pa.compress(b"text" * 999, "zstd", asbytes=True)[:-4], "damaged compression (OSError)"),
        ("a.zip", b"PK\x03\x04 no", "damaged archive (BadZipFile)"),
        ("a.tar", b"no tar" * 200, "damaged archive (ReadError)"),
        ("a.docx", b"PK\x03\x04 no", "damaged DOCX (BadZipFile)"),
        ("a.epub", b"PK\x03\x04 no", "damaged EPUB (BadZipFile)"),
        ("a.pdf", b"%PDF-1.7 no", "damaged PDF (PdfStreamError)"),
        ("a.xml", b"<a><b></a>", "damaged XML (ParseError)"),
        ("a.html", b"", "empty"),
        ("a.html", b"<html></html>", "HTML without text"),
        ("a.json", b"[" * 1_000_000, "nested too deeply"),
        ("a.json", b'{"one": 1}', "one JSON value, not rows; write one object on each line, or a list of objects"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:20], "damaged compression (EOFError)"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_rejected_document(folder: Path, name: str, data: bytes, reason: str) -> None:
    pytest.importorskip("trafilatura", reason="pip install --editable '.[docs]'")
    (folder / name).write_bytes(data)

    kept, rejected, _ = read(folder)

    assert kept == ["good"] and rejected == {reason: 1}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.html", b"<div>" * 500_000 + b"deep"),
        ("a.xml", b"<a>" * 500_000 + b"deep" + b"</a>" * 500_000),
        (
            "a.xml",
            b'<!DOCTYPE a [<!ENTITY b "%s">%s]><a>&c9;</a>'
            % (
                b"ha" * 500,
                b"".join(b'<!ENTITY c%d "%s">' % (n, (b"&c%d;" % (n - 1) if n else b"&b;") * 20) for n in range(10)),
            ),
        ),
        ("a.jsonl", b'{"text": "a", "deep": ' + b"[" * 900_000 + b"]" * 900_000 + b"}\n" + LINES),
        ("a.csv", b'text\n"never closed\n' + b"row\n" * 50_000),
    ],
)
def test_what_is_nested_deeply_or_grows_inside_is_counted(folder: Path, name: str, data: bytes) -> None:
    if name == "a.html":
        pytest.importorskip("trafilatura", reason="pip install --editable '.[docs]'")
    (folder / name).write_bytes(data)

    kept, rejected, _ = read(folder)

    assert "good" in kept and len(kept) + rejected.total() == {"a.jsonl": 2002, "a.csv": 50_002}.get(name, 2)


def test_a_compressed_file_that_ends_early_gives_what_was_whole(folder: Path) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES, 1)[:-500])

    kept, rejected, _ = read(folder / "a.jsonl.gz")

    assert rejected == {"damaged compression (EOFError)": 1}
    assert kept == GOOD[: len(kept)] and len(kept) > 1500


def test_a_truncated_json_array_gives_its_whole_elements(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps([{"text": text} for text in GOOD])[:-5])

    kept, rejected, _ = read(folder / "a.json")

    assert kept == GOOD[:-1] and rejected == {"bad JSON": 1}


def test_bad_rows_of_a_table_are_counted_and_their_neighbours_kept(folder: Path) -> None:
    (folder / "a.csv").write_bytes(b'text,n\ngood,1\nbad\n"two\nlines",2\ncaf\xe9,3\n\nlast,4\n')

    kept, rejected, _ = read(folder / "a.csv")

    assert kept == ["good", "two\nlines", "last"]
    assert rejected == {"another number of columns than the header": 1, "invalid UTF-8": 1, "blank line": 1}


def test_a_string_of_a_table_that_is_no_text_costs_its_own_row_only(folder: Path) -> None:
    texts = pa.array([b"one", b"caf\xe9", b"three"], pa.binary()).view(pa.string())
    batch = pa.record_batch({"text": texts})
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)

    assert read(folder / "a.arrow")[:2] == (["one", "three"], {"invalid UTF-8": 1})


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_tar(path: Path, members: dict[str, bytes], links: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)


MEMBERS = {
    "deep/er/a.txt": b"a",
    "b.jsonl.gz": gzip.compress(LINES),
    "../../outside.txt": b"evil",
    "/etc/absolute.txt": b"evil",
    "..\\windows.txt": b"evil",
    "inner.zip": b"PK",
    "photo.jpg": b"x",
    "__MACOSX/._a.txt": b"x",
    ".hidden.txt": b"x",
}


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_members_of_an_archive_are_files_and_none_reaches_outside(folder: Path, kind: str) -> None:
    if kind == "zip":
        write_zip(folder / "a.zip", MEMBERS)
    else:
        write_tar(folder / "a.tar.gz", MEMBERS, {"link.txt": "/etc/passwd"})

    kept, rejected, passed_over = read(folder)

    assert kept == [*GOOD, "a", "good"]
    links = {"a link or device, not a file": 1} if kind == "tar.gz" else {}
    assert rejected == {"reaches outside its archive": 3, "an archive inside an archive": 1, **links}
    assert passed_over == {".jpg": 1}
    assert not list(folder.parent.glob("outside*")) and not list(folder.glob("*windows*"))


def test_a_member_that_comes_twice_is_read_once(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a.txt", "first")
        archive.writestr("a.txt", "second")

    assert read(folder / "a.zip")[:2] == (["first"], {"duplicate member name": 1})


def test_a_damaged_member_costs_itself_and_a_truncated_tar_its_rest(folder: Path) -> None:
    write_zip(folder / "a.zip", {"a.txt": b"intact", "b.txt": b"broken " * 100})
    data = bytearray((folder / "a.zip").read_bytes())
    data[data.index(b"b.txt") + 8] ^= 0xFF
    (folder / "a.zip").write_bytes(data)
    write_tar(folder / "b.tar.gz", {"a.txt": b"whole", "b.txt": bytes(range(256)) * 4000}, {})
    raw = gzip.decompress((folder / "b.tar.gz").read_bytes())
    (folder / "b.tar").write_bytes(raw[: len(raw) // 2])
    (folder / "b.tar.gz").unlink()

    kept, rejected, _ = read(folder)

    assert kept == ["intact", "whole", "good"]
    assert rejected.total() == 2 and all(reason.startswith("damaged archive") for reason in rejected)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.jsonl.gz", "a.txt.gz"])
def test_what_expands_like_a_bomb_is_stopped(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (archives, streams):
        monkeypatch.setattr(module, "EXPANSION_FREE_BYTES", 2**20)
    zeros = (b"0" if name == "a.txt.gz" else b"\0") * (32 * 2**20)
    if name == "a.zip":
        write_zip(folder / name, {"a.txt": b"before", "b.txt": zeros})
    elif name == "a.tar.gz":
        write_tar(folder / name, {"a.txt": b"before", "b.txt": zeros}, {})
    else:
        (folder / name).write_bytes(gzip.compress(b'{"text": "before"}\n' + zeros))

    kept, rejected, _ = read(folder / name)

    assert rejected == {"expands more than 200-fold": 1}
    assert kept == ([] if name == "a.txt.gz" else ["before"])


def write_pdf(path: Path, text: bytes) -> None:
    """Write a PDF of one page."""
    content = zlib.compress(b"BT /F1 12 Tf " + text + b" ET")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % (n, o) for n, o in enumerate(objects, start=1))
    path.write_bytes(b"%PDF-1.4\n" + body + b"trailer << /Root 1 0 R /Size 6 >>\nstartxref\n0\n%%EOF\n")


@pytest.mark.parametrize(
    ("limit", "value", "text", "reason"),
    [
        ("PDF_CPU_S", 1, b"(x) Tj " * 300_000, "PDF that takes more than 1 s"),
        ("PDF_MEMORY_BYTES", 2**27, b"(%s) Tj" % bytes(2**26), "damaged PDF (MemoryError)"),
    ],
)
def test_a_pdf_that_takes_too_much_is_ended_and_its_neighbours_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, text: bytes, reason: str
) -> None:
    pytest.importorskip("pypdf", reason="pip install --editable '.[docs]'")
    monkeypatch.setattr(pages, limit, value)
    write_pdf(folder / "a.pdf", text)

    assert read(folder)[:2] == (["good"], {reason: 1})


MEASURED = """
import sys
from collections import Counter
from pathlib import Path
from data_prep.config import SourceConfig
from data_prep.read.parts import Rejected, read_part
from data_prep.fetch.sources import cut_slices, find_corpus
corpus = find_corpus([SourceConfig(path=sys.argv[1])], {})
items = [i for parts in cut_slices(corpus, 2**23) for p in parts for i in read_part(p)]
print(sorted(Counter(i.reason if isinstance(i, Rejected) else "kept" for i in items).items()))
print(int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) >> 10)
"""


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("line.jsonl", [("kept", 2), ("longer than 32 MiB", 1)]),
        ("rows.csv", [("kept", 1), ("longer than 32 MiB", 1)]),
        ("rows.json", [("kept", 2), ("longer than 32 MiB", 1)]),
        ("line.txt", [("kept", 25)]),
        ("page.html", [("page of more than 4 MiB", 1)]),
    ],
)
def test_a_hundred_megabytes_on_one_line_are_counted_and_take_bounded_memory(
    tmp_path: Path, name: str, counts: list[tuple[str, int]]
) -> None:
    if name == "page.html":
        pytest.importorskip("trafilatura", reason="pip install --editable '.[docs]'")
    long, good = b"x" * (100 * 2**20), b'{"text": "good"}'
    bodies = {
        "line.jsonl": [good, b"\n", b'{"text": "', long, b'"}\n', good],
        "rows.csv": [b"text,n\n", b"good,1\n", long, b",2\n"],
        "rows.json": [b"[", good, b',{"text": "', long, b'"},', good, b"]"],
        "line.txt": [long],
        "page.html": [b"<html><body><p>", long],
    }
    (tmp_path / name).write_bytes(b"".join(bodies[name]))

    command = [sys.executable, "-c", MEASURED, str(tmp_path / name)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    assert output[0] == str(counts)
    assert int(output[1]) < 600, f"{output[1]} MiB at its most; the text itself is kept where it is kept"


ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from launch.__main__ import main
from data_prep.shards import read_manifest
yaml, folder = sys.argv[1:]
for size in ("80k", "140k", "200k", "260k", "32m"):
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
    print(main(["prepare", yaml]), file=sys.stderr)
print(read_manifest(Path(folder) / "run" / "shards").digest)
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_is_named_and_room_is_all_that_is_needed(
    tmp_path: Path, config_of: Callable[..., DataConfig]
) -> None:
    """The run's disk is one of its own, in a namespace of its own, and is larger at each start."""
    source, disk = tmp_path / "lines.jsonl", tmp_path / "disk"
    source.write_bytes(LINES)
    data = config_of(source, slice_bytes=4096, row_tokens=64)
    clean = prepare(data, tmp_path / "clean", None, seed=0)
    run = {"name": "full", "folder": str(disk / "run"), "data": data.model_dump(mode="json")}
    (tmp_path / "run.yaml").write_text(json.dumps({**run, "model": {"new": {"model_type": "llama"}}}))
    disk.mkdir()

    own = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    mounted = ["sh", "-c", 'mount -t tmpfs tmpfs "$5" && exec "$@"', "sh"]
    program = [sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path / "run.yaml"), str(disk)]
    done = subprocess.run([*own, *mounted, *program], cwd=ROOT, capture_output=True, text=True)

    errors = [line for line in done.stderr.splitlines() if " E " in line]
    codes = [line for line in done.stderr.splitlines() if line in ("0", "1", "2")]
    assert done.stdout.splitlines()[-1] == clean.digest, done.stderr
    assert codes == ["2"] * len(errors) + ["0"] * (5 - len(errors)) and len(errors) > 2, done.stderr
    assert all(f"{disk}/run" in error and "the disk is full" in error and "make room" in error for error in errors)
