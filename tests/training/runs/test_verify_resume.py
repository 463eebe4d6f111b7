"""The certificate of a run: what it says is what two real runs did."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.shards import read_manifest
from launch.saved_config import load_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[3]
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def test_a_run_with_empty_places_proves_that_it_resumes_and_writes_the_bits_down(
    run_in: Callable[..., Any], uneven_shards: Callable[[int], Path], tiny_model: Path, tmp_path: Path
) -> None:
    run = run_in(
        tmp_path,
        data={
            "folder": str(uneven_shards(16)),
            "sources": [{"path": "-"}],
            "row_tokens": 64,
            "tokenizer": {"path": str(tiny_model)},
        },
        model={"new": {"model_type": "gpt2", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2, **NO_DROPOUT}}},
        train={"steps": 100, "global_batch_rows": 5, "micro_batch_rows": 2, "precision": "fp32", "learning_rate": 1e-3},
    )
    command = [sys.executable, "-m", "launch", "verify-resume", str(run.yaml), "--steps", "6", "--ranks", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "killed after step 3 of 6 and resumed on 2 ranks" in done.stdout
    assert "the same to the bit" in done.stdout
    certificate = json.loads(run.paths.certificate.read_text())
    once, again = certificate["undisturbed"], certificate["killed_and_started_again"]
    assert once == again and [line["step"] for line in once] == [1, 2, 3, 4, 5, 6]
    assert len(set(certificate["rows_of_steps"])) == 6
    assert [struct.unpack(">d", bytes.fromhex(line["loss_bits"]))[0] for line in once] == [
        line["loss"] for line in once
    ]
    assert [line["step"] for line in certificate["second_half_on_other_ranks"]] == [4, 5, 6]
    assert not run.paths.resume_trials.exists() and not run.paths.checkpoints.exists()


def test_a_number_of_steps_without_a_half_is_refused(
    run_in: Callable[..., Any], uneven_shards: Callable[[int], Path], tiny_model: Path, tmp_path: Path
) -> None:
    from launch.__main__ import main

    run = run_in(
        tmp_path,
        data={
            "folder": str(uneven_shards(4)),
            "sources": [{"path": "-"}],
            "row_tokens": 64,
            "tokenizer": {"path": str(tiny_model)},
        },
        model={"new": {"model_type": "gpt2", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2}}},
    )
    assert main(["verify-resume", str(run.yaml), "--steps", "5"]) == 2


@pytest.mark.parametrize(("micro_batch_rows", "others", "same"), [(2, 1, False), (1, 1, True), (2, 4, True)])
def test_a_difference_that_dropout_makes_on_other_ranks_is_explained(
    run_in: Callable[..., Any],
    uneven_shards: Callable[[int], Path],
    tiny_model: Path,
    tmp_path: Path,
    micro_batch_rows: int,
    others: int,
    same: bool,
) -> None:
    from launch.runs.verify_resume import as_text, have_same_rows

    shards = uneven_shards(4)
    run = run_in(
        tmp_path,
        data={"folder": str(shards), "sources": [{"path": "-"}], "row_tokens": 64},
        model={"path": str(tiny_model)},
        train={"steps": 8, "global_batch_rows": 5, "micro_batch_rows": micro_batch_rows},
    )
    have_same = have_same_rows(load_run(run.yaml), read_manifest(shards), (2, others))
    assert have_same is same
    figures: dict[str, float | bool] = {
        "killed_after_step": 3,
        "steps": 6,
        "ranks": 2,
        "other_ranks": others,
        "bit_identical": True,
    }
    figures |= {"other_ranks_largest_relative_loss_difference": 0.1, "tolerance": 1e-5}
    told = {**figures, "other_ranks_within_tolerance": False, "micro_batches_have_the_same_rows": have_same}
    assert ("dropout is drawn for each micro batch" in as_text(told)) is not same
