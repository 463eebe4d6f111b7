from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import EXIT_DONE, EXIT_USER_ACTION, DataError
from data_prep.shards import Manifest, ShardReader, read_manifest
from data_prep.verify import verify
from launch.__main__ import main

FAULTS = ("flip", "cut", "swap", "rename")


@pytest.fixture
def data(prepared: Callable[..., Manifest], corpus: Path, tmp_path: Path) -> Path:
    prepared(corpus, shard_rows=16)
    return tmp_path / "data"


def files_of(folder: Path) -> list[Path]:
    """Every file of prepared data; `work` is not part of it."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and "work" not in path.parts)


def inject(fault: str, folder: Path, rng: random.Random) -> tuple[set[str], int | None]:
    """Do one fault; return the names of which one must be said, and the byte that was flipped."""
    path = rng.choice(files_of(folder))
    content = bytearray(path.read_bytes())
    other = rng.choice([file for file in files_of(folder) if file.read_bytes() != content])
    if fault == "flip":
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        return {str(path)}, at
    if fault == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif fault == "swap":
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        path.rename(path.with_name(f"renamed-{path.name}"))
    return {str(path), str(other)} if fault == "swap" else {str(path)}, None


def check_caught(data: Path, whole: Path, number: int) -> None:
    """Do fault `number` to a copy of whole data and check that it is named."""
    fault, rng = FAULTS[number % len(FAULTS)], random.Random(number)
    names, at = inject(fault, data, rng)

    problems = verify(data)

    assert any(name in problem for problem in problems for name in names), (fault, number, problems)
    found = [re.search(r"damaged in bytes (\d+) to (\d+)", problem) for problem in problems]
    if at is not None and (ranges := [match for match in found if match]):
        assert any(int(match[1]) <= at < int(match[2]) for match in ranges)
    shutil.rmtree(data)
    shutil.copytree(whole, data)


def check_faults(data: Path, count: int) -> None:
    whole = data.with_name("whole")
    shutil.rmtree(data / "work")
    shutil.copytree(data, whole)
    for number in range(count):
        check_caught(data, whole, number)
    assert verify(data) == []


def test_random_damage_to_any_file_is_caught_and_named(data: Path) -> None:
    check_faults(data, 120)


@pytest.mark.slow
def test_a_thousand_random_damages_to_any_file_are_caught_and_named(data: Path) -> None:
    check_faults(data, 1000)


def test_every_bit_of_a_shard_s_rows_is_checked_when_it_is_first_read(data: Path) -> None:
    manifest = read_manifest(data)
    shard = manifest.splits["train"][1]
    path = data / shard.path
    content = path.read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        damaged = bytearray(content)
        at = rng.randrange(len(content))
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        reader = ShardReader(data, manifest, "train")
        assert reader.rows(range(16)).input_ids.any()  # the first shard is whole
        if at in range(shard.table_at - 8, shard.table_at):
            continue  # the mark of the stream's end: our reader does not read it
        with pytest.raises(DataError, match=f"{re.escape(str(path))}: damaged in bytes"):
            reader.rows(range(16, 32))


def test_a_block_exchanged_for_another_with_its_digest_is_noticed(data: Path) -> None:
    manifest = read_manifest(data)
    one, other = (data / shard.path for shard in manifest.splits["train"][:2])
    size = one.stat().st_size
    one.write_bytes(other.read_bytes()[:size].ljust(size, b"\0"))

    with pytest.raises(DataError, match=re.escape(str(one))):
        ShardReader(data, manifest, "train").rows([0])


@pytest.mark.parametrize("pattern", ["manifest.json", "train/data-00000-*.arrow", "tokenizer/tokenizer.json"])
def test_a_pipe_where_a_file_should_be_is_named_and_not_waited_for(data: Path, pattern: str) -> None:
    (path,) = data.glob(pattern)
    path.unlink()
    os.mkfifo(path)

    (problem,) = verify(data)

    assert problem.startswith(f"{path}: is a named pipe, not a file; delete it")


def test_files_that_do_not_belong_are_named(data: Path) -> None:
    (data / "train" / "data-00099-of-00099.arrow").write_bytes(b"")

    (problem,) = verify(data)

    assert "data-00099-of-00099.arrow: the manifest does not list it" in problem


def test_the_command_says_what_is_damaged(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(data)]) == EXIT_DONE
    assert "every byte is as the manifest says" in capsys.readouterr().out

    shard = data / read_manifest(data).splits["train"][0].path
    shard.write_bytes(shard.read_bytes()[:-1])

    assert main(["verify", str(data)]) == EXIT_USER_ACTION
    assert str(shard) in capsys.readouterr().out
