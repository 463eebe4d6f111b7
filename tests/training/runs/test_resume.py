"""Kill it anywhere, stop it anyhow, change the number of ranks: the run is the one that nobody disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.journal.records import read_lines
from tests.training.rank_programs.bits import exact, weights
from training.checkpoints.layout import committed_folders, newest_checkpoint
from training.reporting.run_state import read_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, SAVE_EVERY = 12, 4  # all three checkpoints stay
GPT2_WITH_DROPOUT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
SOME_STAY_GATHERED = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 500}}


@pytest.fixture(scope="module")
def new_run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    uneven_shards: Callable[[int], Path],
    run_in: Callable[..., Any],
) -> Callable[..., Any]:
    """Return a run in a folder of its own: dropout, two parameter groups, four accumulation steps on two ranks."""
    shards = uneven_shards(40)

    def new(precision: str, **train: Any) -> Any:
        folder = tmp_path_factory.mktemp("resume")
        template = folder / "template.json"
        template.write_text(json.dumps(SOME_STAY_GATHERED))
        return run_in(
            folder,
            data={
                "folder": str(shards),
                "sources": [{"path": "-"}],
                "row_tokens": 64,
                "tokenizer": {"path": str(tiny_model)},
            },
            model={"new": {"model_type": "gpt2", "config": GPT2_WITH_DROPOUT}},
            train={
                "steps": STEPS,
                "global_batch_rows": 8,
                "learning_rate": 3e-3,
                "save_every_steps": SAVE_EVERY,
                "precision": precision,
                "deepspeed": str(template),
                **train,
            },
        )

    return new


@pytest.fixture(scope="module")
def undisturbed_bf16(new_run: Callable[..., Any]) -> Any:
    run = new_run("bf16")
    assert run.train() == 0
    return run


@pytest.fixture(scope="module")
def undisturbed_fp32(new_run: Callable[..., Any]) -> Any:
    """Started by torchrun, so that what is compared with it does not depend on the launcher either."""
    run = new_run("fp32")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert run.launch([*torchrun, "-m", "launch", "train", str(run.yaml)]).wait() == 0, run.log.read_text()
    return run


def done(step: int) -> Callable[[Any], bool]:
    return lambda run: step in run.steps()


def saving(run: Any) -> bool:
    return any(run.paths.checkpoints.glob("step-*.partial"))


def saved(step: int) -> Callable[[Any], bool]:
    return lambda run: (run.paths.checkpoints / f"step-{step:06d}").exists()


def assert_same_bits(run: Any, expected: Any) -> None:
    assert run.steps() == list(range(1, STEPS + 1))
    assert exact(run) == exact(expected)
    assert weights(run) == weights(expected)


def test_a_run_killed_three_times_has_the_bits_of_one_never_killed(
    new_run: Callable[..., Any], undisturbed_bf16: Any
) -> None:
    """This run also evaluates held-out rows between saves."""
    run = new_run("bf16", validate_every_steps=3)
    for moment in (done(2), saving, saved(8)):
        run.kill_when(moment)
    assert run.train() == 0
    assert_same_bits(run, undisturbed_bf16)
    seldom, often = read_state(undisturbed_bf16.paths).validation, read_state(run.paths).validation
    assert (sorted(seldom), sorted(often)) == ([4, 8, 12], [3, 4, 6, 8, 9, 12])
    assert {step: often[step] for step in seldom} == seldom


def test_a_run_stopped_by_signals_has_the_bits_of_one_never_stopped(
    new_run: Callable[..., Any], undisturbed_fp32: Any
) -> None:
    run = new_run("fp32")

    process = run.start()
    run.watch(process, done(2))
    process.send_signal(signal.SIGTERM)  # to the launcher, which passes it on
    assert process.wait() == 75
    assert run.ends()[-1]["reason"] == "signal SIGTERM"
    assert_saved_where_it_ended(run)

    process = run.start()
    run.watch(process, done(run.steps()[-1] + 1))
    run.signal_rank(process, 1, signal.SIGUSR2)  # to one rank, as Slurm may
    assert process.wait() == 75
    assert run.ends()[-1]["reason"] == "signal SIGUSR2"
    assert_saved_where_it_ended(run)

    assert run.train() == 0
    assert_same_bits(run, undisturbed_fp32)


def assert_saved_where_it_ended(run: Any) -> None:
    """The last step that was taken is the one that was saved, and the one that the attempt ended with."""
    last = run.steps()[-1]
    assert last < STEPS
    assert run.ends()[-1]["step"] == last
    assert newest_checkpoint(run.paths.checkpoints).name == f"step-{last:06d}"


def test_a_run_continues_on_a_host_of_another_name_whose_clock_is_a_day_behind(
    new_run: Callable[..., Any], undisturbed_fp32: Any
) -> None:
    run = new_run("fp32")
    run.kill_when(saved(4))
    date_ahead(run.paths.root, timedelta(days=1))
    own = ["unshare", "--uts", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    renamed = ["sh", "-c", 'hostname no-such-host.invalid && exec "$@"', "-"]
    assert run.launch([*own, *renamed, *run.command()]).wait() == 0, run.log.read_text()
    assert [start["host"] for start in run.events("start")] == [socket.gethostname(), "no-such-host.invalid"]
    assert_same_bits(run, undisturbed_fp32)
    state = read_state(run.paths)
    assert 0 < state.elapsed_s < timedelta(hours=12).total_seconds()


def date_ahead(folder: Path, ahead: timedelta) -> None:
    """Let everything in a run's folder be written so much later: what a clock that is then set back leaves."""
    attempts = folder / "attempts.jsonl"
    events = read_lines(attempts)
    for event in events:
        event["time"] = (datetime.fromisoformat(event["time"]) + ahead).isoformat()
    attempts.write_text("".join(json.dumps(event) + "\n" for event in events))
    for path in folder.rglob("*"):
        written = path.stat().st_mtime + ahead.total_seconds()
        os.utime(path, (written, written))


def test_a_run_continues_with_fewer_and_with_more_ranks(new_run: Callable[..., Any], undisturbed_fp32: Any) -> None:
    """Three ranks and eight rows: a ninth place is empty."""
    run = new_run("fp32")
    run.kill_when(saved(4), ranks=3)
    run.kill_when(saved(8), ranks=1)
    assert run.train(ranks=4) == 0
    assert "1 of 9 places empty" in run.log.read_text()
    assert run.steps() == list(range(1, STEPS + 1))
    losses, expected = ([line["loss"] for line in r.metrics()] for r in (run, undisturbed_fp32))
    assert losses == pytest.approx(expected, abs=1e-5)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_older_one_leads_to_the_same_bits(
    new_run: Callable[..., Any], undisturbed_bf16: Any, tmp_path: Path
) -> None:
    run = new_run("bf16")
    shutil.copytree(undisturbed_bf16.paths.root, run.paths.root)
    folder = newest_checkpoint(run.paths.checkpoints)
    damaged = sorted(folder.glob("*.safetensors"))[1]
    flip_a_bit(damaged)
    assert run.train() == 0
    said = run.log.read_text()
    assert f"{damaged}: its sha256 is not the one in commit.json" in said
    assert (run.paths.checkpoints / "set_aside" / folder.name / damaged.name).exists()
    assert "Traceback" not in said
    assert_same_bits(run, undisturbed_bf16)


def test_with_no_good_checkpoint_left_a_run_does_not_begin_anew_in_silence(
    new_run: Callable[..., Any], undisturbed_bf16: Any
) -> None:
    run = new_run("bf16")
    shutil.copytree(undisturbed_bf16.paths.root, run.paths.root)
    for folder in committed_folders(run.paths.checkpoints):
        flip_a_bit(folder / "commit.json")
    assert run.train(ranks=1) == 2
    assert "no good checkpoint is left" in run.log.read_text()
    assert len(run.steps()) == STEPS


def test_a_changed_setting_is_named_before_anything_is_done(undisturbed_bf16: Any, tmp_path: Path) -> None:
    shutil.copytree(undisturbed_bf16.paths.root, tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    before = undisturbed_bf16.log.read_text()
    arguments = ["-o", f"folder={tmp_path / 'run'}", "-o", "train.learning_rate=0.5"]
    assert undisturbed_bf16.train(*arguments, ranks=1) == 2
    said = undisturbed_bf16.log.read_text().removeprefix(before)
    assert (
        "belongs to another run: train.learning_rate was 0.003, is 0.5. A run resumes with the settings it started with"
        in said
    )
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    assert len(committed_folders(tmp_path / "run" / "checkpoints")) == STEPS // SAVE_EVERY


def test_a_step_that_is_taken_once_more_has_the_same_bits_and_leaves_the_run_as_it_was(undisturbed_fp32: Any) -> None:
    run = undisturbed_fp32
    before = {path: path.stat().st_mtime_ns for path in run.paths.root.rglob("*")}
    replay = [sys.executable, "-m", "launch", "inspect", str(run.yaml), "--step", "7", "--replay"]
    said = run.log.read_text()
    assert run.launch(replay).wait() == 0
    said = run.log.read_text().removeprefix(said)
    for name in ("loss", "gradient_norm"):
        then = run.metrics()[6][name]
        assert f"step 7, {name}: {then!r} in metrics.jsonl, {then!r} replayed: equal to the bit" in said
    assert {path: path.stat().st_mtime_ns for path in run.paths.root.rglob("*")} == before
