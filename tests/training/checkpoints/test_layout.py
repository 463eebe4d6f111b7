"""Which folders are checkpoints, what is said of those that cannot be used, and which may go. No ranks."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as load_state

from cluster.disk.atomic_files import digest_of
from cluster.errors import CheckpointError
from tests.training.rank_programs.bits import read_weights
from training.checkpoints.layout import (
    FORMAT_VERSION,
    KEEP,
    Commit,
    DamagedError,
    commit_folder,
    committed_folders,
    expired,
    files_record,
    newest_checkpoint,
    read_commit,
    remove,
    set_aside,
    set_aside_folders,
    step_of,
    stored_state,
    supersede,
    superseded_folders,
    sweep,
    verify,
)
from training.checkpoints.shard_files import FileFacts, Span, rank_file_name, write_rank_file
from training.checkpoints.span_index import RankIndex, rank_spans, runs_of
from training.run_identity import COMMIT, check_identity

IDENTITY = {"train.learning_rate": 1e-3, "seed": 0, "data": "abc"}
SHAPES = {"weight": [5, 3], "bias": [5]}
CUTS = {"weight": (0, 8, 8, 15), "bias": (0, 3, 5, 5)}  # over three ranks; some hold nothing of a tensor


def tensor_of(key: str, step: int = 5) -> torch.Tensor:
    numel = {"weight": 15, "bias": 5}[key.partition(".")[2]]
    return torch.arange(numel, dtype=torch.float32) + step * 100 + len(key)


def write_checkpoint(checkpoints: Path, step: int = 5, *, lists_spans: bool = True) -> Path:
    """Write a checkpoint of three ranks; without `lists_spans`, as format version 3 was."""
    partial, final = checkpoints / f"step-{step:06d}.partial", checkpoints / f"step-{step:06d}"
    partial.mkdir(parents=True)
    files: dict[str, FileFacts] = {}
    ranks = []
    for rank in range(3):
        for kind in ("master", "exp_avg", "exp_avg_sq"):
            spans, data = [], []
            for name, cuts in CUTS.items():
                start, stop = cuts[rank], cuts[rank + 1]
                if start < stop:
                    spans.append(Span(key=f"{kind}.{name}", start=start, numel=stop - start))
                    data.append(tensor_of(f"{kind}.{name}", step)[start:stop].clone())
            name = rank_file_name(kind, rank, 3)
            files[name] = write_rank_file(partial / name, spans, data)
        ranks.append(rank_spans(kind, spans))
    commit = Commit(
        step=step,
        progress={"steps_done": step, "skipped": []},
        world_size=3,
        identity=IDENTITY,
        shapes=SHAPES,
        files=files_record(files),
        version=FORMAT_VERSION if lists_spans else 3,
        spans=runs_of(ranks) if lists_spans else {},
    )
    commit_folder(partial, final, commit)
    return final


def rewrite(folder: Path, **changes: object) -> None:
    """Change a commit file and give it the digest that fits."""
    values = {**json.loads((folder / COMMIT).read_text()), **changes}
    values.pop("digest")
    (folder / COMMIT).write_text(json.dumps({**values, "digest": digest_of(values)}))


def test_only_folders_with_a_commit_file_are_checkpoints_the_oldest_first(tmp_path: Path) -> None:
    for step in (20, 1_000_000, 5):
        write_checkpoint(tmp_path, step)
    for name in ("step-000030.partial", "step-000040", "step-x", "other-000007"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000050").write_text("a file")
    assert [path.name for path in committed_folders(tmp_path)] == ["step-000005", "step-000020", "step-1000000"]
    assert newest_checkpoint(tmp_path).name == "step-1000000"


def test_a_command_that_needs_a_checkpoint_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no checkpoint; run `shardline train RUN\.yaml` first"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("key", [f"{kind}.{name}" for kind in ("master", "exp_avg", "exp_avg_sq") for name in SHAPES])
@pytest.mark.parametrize("lists_spans", [True, False], ids=["spans in the commit", "version 3"])
def test_any_span_of_a_tensor_is_read_back_from_the_files_of_any_ranks(
    tmp_path: Path, key: str, lists_spans: bool
) -> None:
    folder = write_checkpoint(tmp_path, lists_spans=lists_spans)
    whole = tensor_of(key)
    with stored_state(folder, read_commit(folder)) as state:
        for start in range(len(whole)):
            for stop in range(start, len(whole) + 1):
                assert torch.equal(state.read(key, start, torch.empty(stop - start)), whole[start:stop])


def test_torch_itself_reads_what_the_ranks_wrote(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    found = {"master.weight": torch.empty(15), "exp_avg_sq.bias": torch.empty(5)}
    load_state(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert all(torch.equal(tensor, tensor_of(key)) for key, tensor in found.items())


def test_weights_have_their_shapes_again(tmp_path: Path) -> None:
    weights = read_weights(write_checkpoint(tmp_path), SHAPES)
    assert torch.equal(weights["weight"], tensor_of("master.weight").reshape(5, 3))


@pytest.mark.parametrize("lost", ["master-00000-of-00003.safetensors", "master-00002-of-00003.safetensors"])
def test_an_element_that_no_file_holds_is_an_error(tmp_path: Path, lost: str) -> None:
    folder = write_checkpoint(tmp_path)
    commit = read_commit(folder)
    fewer = replace(commit, files={name: facts for name, facts in commit.files.items() if name != lost}, spans={})
    with stored_state(folder, fewer) as state, pytest.raises(CheckpointError, match=r"master\.weight: element .* once"):
        state.read("master.weight", 0, torch.empty(15))


def damages(folder: Path) -> list[str]:
    """Return what can be done to each file of a checkpoint."""
    names = [path.name for path in sorted(folder.iterdir())]
    kinds = ["flip", "cut", "empty", "missing", "other step"]
    swaps = [f"swap {one} {other}" for one, other in pairwise(names)]
    return [f"{kind} {name}" for name in names for kind in kinds] + swaps


def damage(folder: Path, other: Path, what: str, seed: int = 0) -> None:
    kind, *names = what.rsplit(" ", 2) if what.startswith("swap") else what.rsplit(" ", 1)
    path = folder / names[0]
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[random.Random(seed).randrange(len(content))] ^= 1 << random.Random(seed + 1).randrange(8)
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: random.Random(seed).randrange(len(content))])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "missing":
        path.unlink()
    elif kind == "other step":
        shutil.copy(other / names[0], path)
    else:
        (folder / names[1]).rename(folder / "between")
        path.rename(folder / names[1])
        (folder / "between").rename(path)


def test_whatever_is_done_to_any_file_is_found_and_the_file_named(tmp_path: Path) -> None:
    original, other = write_checkpoint(tmp_path / "original"), write_checkpoint(tmp_path / "other", step=6)
    verify(original)
    for number, what in enumerate(damages(original) * 8):
        folder = shutil.copytree(original, tmp_path / "copies" / str(number) / original.name)
        damage(folder, other, what, seed=number)
        with pytest.raises(DamagedError) as caught:
            verify(folder)
        assert what.rsplit(" ", 1)[1] in str(caught.value) or what.split(" ")[1] in str(caught.value), what


def test_a_commit_file_of_another_step_is_damage_even_with_its_own_digest(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    rewrite(folder, step=6)
    with pytest.raises(DamagedError, match="says step 6, the folder is step-000005"):
        read_commit(folder)


@pytest.mark.parametrize("version", [1, 2, 99])
def test_a_checkpoint_of_another_version_is_refused_and_not_called_damaged(tmp_path: Path, version: int) -> None:
    folder = write_checkpoint(tmp_path)
    rewrite(folder, version=version, layout="another")
    with pytest.raises(
        CheckpointError, match=f"version {version}, this program reads 3 and {FORMAT_VERSION}"
    ) as caught:
        read_commit(folder)
    assert not isinstance(caught.value, DamagedError)


def test_a_file_that_is_no_rank_s_file_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    path = folder / rank_file_name("exp_avg", 1, 3)
    path.write_bytes(b"\xff" * 100)
    commit = Commit(**json.loads((folder / COMMIT).read_text()))
    for spans in (commit.spans, {}):
        with (
            pytest.raises(CheckpointError, match=f"{path}: not a rank's part of a checkpoint"),
            stored_state(folder, replace(commit, spans=spans)) as state,
        ):
            state.read("exp_avg.bias", 0, torch.empty(5))


def test_a_changed_run_is_told_each_changed_key_with_what_it_was_and_is(tmp_path: Path) -> None:
    now = {**IDENTITY, "train.learning_rate": 2e-3, "data": "xyz"}
    with pytest.raises(CheckpointError) as caught:
        check_identity(IDENTITY, now, tmp_path)
    assert f"{tmp_path}: belongs to another run" in str(caught.value)
    assert "train.learning_rate was 0.001, is 0.002; data was 'abc', is 'xyz'" in str(caught.value)
    assert "seed" not in str(caught.value)


def test_the_same_run_is_accepted_after_its_identity_went_through_json(tmp_path: Path) -> None:
    identity = {"rate": 1e-3, "epsilon": 1e-8, "clip": None, "name": "ü", "odd": 0.1 + 0.2}
    then = json.loads(json.dumps(identity))
    check_identity(then, identity, tmp_path)  # raises nothing
    with pytest.raises(CheckpointError, match=r"odd was 0\.30000000000000004, is 0\.3"):
        check_identity(then, {**identity, "odd": 0.3}, tmp_path)


def test_a_damaged_checkpoint_is_set_aside_with_its_reason_as_often_as_it_happens(tmp_path: Path) -> None:
    for reason in ("first", "second"):
        aside = set_aside(write_checkpoint(tmp_path), reason)
        assert (aside / "reason.txt").read_text() == reason + "\n"
    assert [path.name for path in sorted((tmp_path / "set_aside").iterdir())] == ["step-000005", "step-000005-1"]
    assert committed_folders(tmp_path) == []


def test_the_last_ones_the_nth_and_the_marked_stay(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path, step) for step in range(10, 100, 10)]
    (folders[0] / KEEP).touch()
    verify(folders[0])  # the mark is no damage
    gone = expired(folders, keep_last=2, keep_every_steps=40)
    assert [step_of(folder) for folder in gone] == [20, 30, 50, 60, 70]


def test_the_best_stays(tmp_path: Path) -> None:
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: 2.5}
    folders = [write_checkpoint(tmp_path, step) for step in losses]
    for folder, loss in zip(folders, losses.values(), strict=True):
        rewrite(folder, progress={"steps_done": step_of(folder), "validation_loss": loss})
    assert [step_of(folder) for folder in expired(folders, keep_last=1, keep_every_steps=None)] == [10, 30]


def test_what_a_rollback_supersedes_is_not_called_damaged(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step)
    supersede(tmp_path, before=21)
    assert [step_of(folder) for folder in committed_folders(tmp_path)] == [10, 20]
    verify(tmp_path / "superseded" / "step-000030")
    (tmp_path / "superseded").rename(tmp_path / "left_behind")  # as runs of earlier versions call it
    write_checkpoint(tmp_path, 40)
    supersede(tmp_path, before=35)
    assert [step_of(folder) for folder in superseded_folders(tmp_path)] == [40, 30]
    assert set_aside_folders(tmp_path) == []


def test_what_is_removed_or_half_written_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    kept, doomed = write_checkpoint(tmp_path, 5), write_checkpoint(tmp_path, 6)
    (tmp_path / "step-000007.partial").mkdir()
    remove(doomed)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_commit_whose_spans_are_not_those_of_the_files_is_never_loaded(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    commit = replace(read_commit(folder), spans={"weight": [[0, 0, 5, 3]], "bias": [[0, 0, 5, 1]]})
    with stored_state(folder, commit) as state:
        with pytest.raises(CheckpointError, match=r"master\.weight: element 5 is not stored exactly once"):
            state.read("master.weight", 5, torch.empty(5))
        with pytest.raises(CheckpointError, match=r"master\.other: the commit file lists no span of it"):
            state.read("master.other", 0, torch.empty(1))


@given(
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=12).map(sorted),
    wanted=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_the_index_names_the_files_that_hold_an_element_and_no_others(cuts: list[int], wanted: tuple[int, int]) -> None:
    edges = [0, *cuts]
    ranks = [{"w": (start, stop - start)} for start, stop in pairwise(edges)]
    start, stop = min(wanted), min(max(wanted), edges[-1])
    expected = [rank for rank, (first, last) in enumerate(pairwise(edges)) if max(first, start) < min(last, stop)]
    index = RankIndex({"w": [], **runs_of(ranks)}, len(ranks))
    assert index.files("master.w", start, stop) == [rank_file_name("master", rank, len(ranks)) for rank in expected]


def test_equal_spans_take_the_same_room_in_a_commit_whatever_the_number_of_ranks() -> None:
    for size in (8, 1024):
        chunk = -(-1_000_003 // size)
        ranks = [{"w": (rank * chunk, min(chunk, 1_000_003 - rank * chunk))} for rank in range(size)]
        assert len(runs_of(ranks)["w"]) == 2
