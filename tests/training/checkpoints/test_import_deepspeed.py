"""What plain DeepSpeed saved becomes a checkpoint of ours, bit for bit; what is torn, mixed or not it is named."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cluster.errors import CheckpointError
from cluster.journal.records import read_lines
from cluster.launching.local_launcher import run_ranks
from data_prep.shards import ShardReader, read_manifest
from launch.__main__ import main
from tests.rank_server import RankServer
from tests.training.rank_programs.bits import read_weights
from training.checkpoints.import_deepspeed import import_deepspeed, read_pickle, sub_groups, tag_folder
from training.checkpoints.layout import newest_checkpoint, read_commit, stored_state, verify
from training.order import Order
from training.step.batches import Batches
from training.step.loss import summed_loss

ROOT = Path(__file__).resolve().parents[3]
RANKS = ROOT / "tests" / "training" / "rank_programs" / "deepspeed_ranks.py"
TAG = "global_step3"
OPTIMIZER_FILE = "zero_pp_rank_1_mp_rank_00_optim_states.pt"


@pytest.fixture(scope="module")
def native(tiny_model: Path, rank_server: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks of plain DeepSpeed left: see deepspeed_ranks.py."""
    folder = tmp_path_factory.mktemp("native")
    assert rank_server.run([str(RANKS), str(folder), str(tiny_model)], 2) == 0
    return folder


def imported(source: Path, output: Path, tag: str | None = None) -> Path:
    groups = sub_groups(tag_folder(source, tag))
    shapes = {name: shape for group in groups for name, shape in group.items()}
    return import_deepspeed(source, tag, output, shapes, {"seed": 7})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_weights_and_moments_are_those_that_deepspeed_says_it_has(native: Path, tmp_path: Path, name: str) -> None:
    folder = imported(native / name, tmp_path)
    commit = verify(folder)
    assert (commit.step, commit.world_size, commit.resumed().updates, commit.identity) == (3, 2, 3, {"seed": 7})
    expected = load_file(native / f"{name}.safetensors")
    assert {f"{kind}.{key}" for kind in ("master", "exp_avg", "exp_avg_sq") for key in commit.shapes} == expected.keys()
    with stored_state(folder, commit) as state:
        for key, tensor in expected.items():
            assert torch.equal(state.read(key, 0, torch.empty(tensor.numel())), tensor.reshape(-1)), key
            assert list(tensor.shape) == commit.shapes[key.partition(".")[2]]
    assert len(sub_groups(native / name / TAG)) == (3 if name == "bf16" else 2)  # the first group was cut in two


@pytest.mark.slow
def test_a_run_continues_from_deepspeeds_checkpoint_on_another_number_of_ranks(
    native: Path, tmp_path: Path, run_yaml: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = run_yaml(tmp_path, steps=5, precision="fp32")
    assert main(["checkpoint", "convert", str(yaml), "--from-deepspeed", str(native / "fp32")]) == 0
    assert f"next: shardline train {yaml}, up to step 5" in capsys.readouterr().out
    folder = newest_checkpoint(tmp_path / "run" / "checkpoints")
    weights = read_weights(folder, read_commit(folder).shapes)
    command = [sys.executable, "-m", "launch", "train", str(yaml)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert run_ranks(command, 1) == 0
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [4, 5]
    assert lines[0]["loss"] == pytest.approx(loss_of_step(yaml, 3, weights), rel=1e-5)


def loss_of_step(yaml: Path, step: int, weights: dict[str, torch.Tensor]) -> float:
    """Return the loss of a run's step (from 0), by transformers and these weights alone."""
    run = json.loads(yaml.read_text())
    shards, rows = Path(run["data"]["folder"]), run["train"]["global_batch_rows"]
    manifest = read_manifest(shards)
    reader = ShardReader(shards, manifest, "train")
    order = Order(row_count=len(reader), global_batch_rows=rows, seed=0, data_digest=manifest.content_digest)
    batch = Batches(reader=reader, order=order, rank=0, world_size=1, micro_batch_rows=rows).for_step(step)
    (micro,) = batch.micro_batches
    model = AutoModelForCausalLM.from_pretrained(run["model"]["path"], dtype=torch.float32)
    model.load_state_dict(weights)
    with torch.inference_mode():
        logits = model(input_ids=micro.input_ids, position_ids=micro.position_ids, use_cache=False).logits
        chosen = logits.flatten(0, 1)[micro.trained.places]
        return float(summed_loss(chosen, micro.trained.targets)) / batch.trained_tokens


def lose_a_file(source: Path) -> None:
    (source / TAG / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()


def lose_the_names(source: Path) -> None:
    (source / TAG / "zero_pp_rank_0_mp_rank_00_model_states.pt").unlink()


def lose_latest(source: Path) -> None:
    (source / "latest").unlink()


def point_latest_nowhere(source: Path) -> None:
    (source / "latest").write_text("global_step4")


def cut_a_file(source: Path) -> None:
    content = (source / TAG / OPTIMIZER_FILE).read_bytes()
    (source / TAG / OPTIMIZER_FILE).write_bytes(content[: len(content) // 2])


def flip_a_bit(source: Path) -> None:
    content = bytearray((source / TAG / OPTIMIZER_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (source / TAG / OPTIMIZER_FILE).write_bytes(content)


def add_a_rank(source: Path) -> None:
    shutil.copy(source / TAG / OPTIMIZER_FILE, source / TAG / OPTIMIZER_FILE.replace("rank_1", "rank_2"))


def change_state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(source: Path) -> None:
        path = source / TAG / OPTIMIZER_FILE
        values = read_pickle(path)
        values = {"optimizer_state_dict": {k: v for k, v in values["optimizer_state_dict"].items() if k in KEPT}}
        change(values["optimizer_state_dict"])
        torch.save(values, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    return damage


KEPT = ("partition_count", "fp32_flat_groups", "optimizer_state_dict")
take_another_step = change_state(lambda s: [v["step"].add_(1) for v in s["optimizer_state_dict"]["state"].values()])
take_moments_away = change_state(lambda s: s["optimizer_state_dict"]["state"].clear())
shorten = change_state(lambda s: s.update(fp32_flat_groups=[flat[:-1] for flat in s["fp32_flat_groups"]]))
other_stage = change_state(lambda s: s.update(single_partition_of_fp32_groups=s.pop("fp32_flat_groups")))
halves = change_state(lambda s: s.update(fp32_flat_groups=[flat.half() for flat in s["fp32_flat_groups"]]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lose_a_file, "rank 0's optimizer file is missing; copy the whole folder again"),
        (lose_the_names, "rank_0_mp_rank_00_model_states.pt: missing; .* Only what ZeRO stage 3 wrote can be read"),
        (lose_latest, "latest: missing; choose with --tag one of global_step3"),
        (point_latest_nowhere, "global_step4: no such checkpoint; choose with --tag one of global_step3"),
        (cut_a_file, f"{OPTIMIZER_FILE}: not a whole file"),
        (flip_a_bit, f"{OPTIMIZER_FILE}: damaged: .* does not match its checksum; copy it again"),
        (add_a_rank, "is one of 2 ranks' files, 3 are here"),
        (take_another_step, r"its files are of different steps: \[3, 4\]"),
        (take_moments_away, "no master weights with Adam's moments"),
        (shorten, "master has .* elements by sub-group, 2 ranks of this model have"),
        (other_stage, "what can be read is ZeRO stage 3 with Adam"),
        (halves, "not flat fp32 tensors of one step"),
    ],
)
def test_what_is_torn_or_mixed_is_named_and_nothing_is_written(
    native: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    source = Path(shutil.copytree(native / "fp32", tmp_path / "source"))
    damage(source)
    with pytest.raises(CheckpointError, match=said):
        imported(source, tmp_path / "checkpoints")
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.slow
def test_a_tag_can_be_chosen_or_its_folder_named(native: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(native / "bf16", tmp_path / "source"))
    (source / "latest").unlink()
    by_tag = imported(source, tmp_path / "one", tag=TAG)
    by_folder = imported(source / TAG, tmp_path / "other")
    assert read_commit(by_tag).files == read_commit(by_folder).files


@pytest.mark.slow
def test_another_model_and_a_run_with_checkpoints_of_its_own_are_refused(native: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds another model than the run's; first difference: extra is None"):
        shapes = {name: shape for group in sub_groups(native / "bf16" / TAG) for name, shape in group.items()}
        import_deepspeed(native / "bf16", None, tmp_path, {**shapes, "extra": [2]}, {})
    there = imported(native / "bf16", tmp_path)
    with pytest.raises(CheckpointError, match=f"{there}: the run has checkpoints of its own; give the new run another"):
        imported(native / "fp32", tmp_path)


class Evil:
    """Runs a program when it is unpickled."""

    def __init__(self, path: Path, function: Callable[..., Any]) -> None:
        self.path, self.function = path, function

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.function, (str(self.path),)


@pytest.mark.parametrize("function", [open, __import__])
def test_no_code_that_a_pickle_names_is_run(tmp_path: Path, function: Callable[..., Any]) -> None:
    name = "never_imported" if function is __import__ else str(tmp_path / "made")
    torch.save({"evil": Evil(Path(name), function), "value": torch.ones(2)}, tmp_path / "file.pt")
    assert torch.equal(read_pickle(tmp_path / "file.pt")["value"], torch.ones(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pt"]


@pytest.mark.parametrize(("function", "said"), [(os.mkdir, "posix.*blocked"), (Path.mkdir, "unrecognized function")])
def test_a_pickle_that_cannot_be_read_without_its_code_is_refused(
    tmp_path: Path, function: Callable[..., Any], said: str
) -> None:
    torch.save({"evil": Evil(tmp_path / "made", function)}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=f"cannot be read without running code of its own .*{said}"):
        read_pickle(tmp_path / "file.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.pt"]


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04"])
def test_a_file_that_torch_did_not_save_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file\.pt: not a whole file"):
        read_pickle(tmp_path / "file.pt")
