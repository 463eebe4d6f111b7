"""A real run that is killed at random moments, again and again, ends with the bits of one that nobody touched."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.training.rank_programs.bits import exact, weights

LONG = {"deaths": 200, "steps": 600}
MOMENTS = ("starting", "stepping", "saving", "committed", "removing")
VICTIMS = ("launcher", "one rank", "all ranks")


@pytest.fixture
def new_run(
    tmp_path: Path, tiny_model: Path, uneven_shards: Callable[[int], Path], run_in: Callable[..., Any]
) -> Callable[[str, int], Any]:
    """Return a run on two ranks: dropout, two parameter groups, two accumulation steps, saved every third step."""
    shards = uneven_shards(40)

    def new(name: str, steps: int) -> Any:
        dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
        return run_in(
            tmp_path / name,
            data={
                "folder": str(shards),
                "sources": [{"path": "-"}],
                "row_tokens": 64,
                "tokenizer": {"path": str(tiny_model)},
            },
            model={"new": {"model_type": "gpt2", "config": {"n_embd": 32, "n_layer": 2, "n_head": 2, **dropout}}},
            train={
                "steps": steps,
                "global_batch_rows": 4,
                "learning_rate": 1e-3,
                "save_every_steps": 3,
                "keep_last": 2,
            },
        )

    return new


def arrived(run: Any, moment: str, first_step: int, generator: random.Random) -> Callable[[Any], bool]:
    """Return what tells that a moment has come, chosen anew."""
    deadline = time.monotonic() + generator.uniform(0.0, 12.0)
    step = first_step + generator.randint(1, 9)
    folder = run.paths.checkpoints
    return {
        "starting": lambda run: time.monotonic() > deadline,
        "stepping": lambda run: run.steps()[-1:] >= [step],
        "saving": lambda run: any(folder.glob("step-*[0-9].partial")),
        "committed": lambda run: any(int(path.name[5:]) > first_step for path in folder.glob("step-*[0-9]")),
        "removing": lambda run: any(folder.glob("*.removed.partial")),
    }[moment]


def die(run: Any, generator: random.Random) -> str:
    """Start the run and kill it at a random moment; return what was done, or "" if it came to its end before."""
    moment, victim = generator.choice(MOMENTS), generator.choice(VICTIMS)
    first_step = run.steps()[-1] if run.steps() else 0
    has_come = arrived(run, moment, first_step, generator)
    process = run.start(ranks=2)
    while process.poll() is None and not has_come(run):
        time.sleep(0.001)
    time.sleep(generator.uniform(0.0, 0.02))
    ranks = run.ranks(process) if process.poll() is None else []
    chosen = {"launcher": [process.pid], "one rank": ranks[:1], "all ranks": ranks}[victim] or [process.pid]
    if process.poll() is None:
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    code = process.wait()
    run.wait_for_death(ranks)
    refused = code == 2 and "made no step beyond" in run.log.read_text()  # two deaths in a row before a new step
    assert refused or code in (0, 1, -signal.SIGKILL), run.log.read_text()[-5000:]
    return "" if refused or code == 0 else f"{moment}: {victim}"


def check_kills(new_run: Callable[[str, int], Any], seed: int, deaths: int, steps: int) -> list[str]:
    """Kill a run so many times, beginning another when one has come to its end; return what was done."""
    undisturbed = new_run("undisturbed", steps)
    assert undisturbed.train() == 0, undisturbed.log.read_text()[-3000:]
    done: list[str] = []
    generator, number = random.Random(seed), 0
    while len(done) < deaths:
        run = new_run(f"killed-{number}", steps)
        number += 1
        while len(done) < deaths and run.steps()[-1:] != [steps]:
            what = die(run, generator)
            if what:
                done.append(what)
        if run.train() == 2:  # two deaths in a row before a new step: it asked a person to look
            assert run.train() == 0, run.log.read_text()[-5000:]
        assert run.steps() == list(range(1, steps + 1))
        assert exact(run) == exact(undisturbed) and weights(run) == weights(undisturbed)
    return done


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_two_hundred_deaths_at_random_moments_change_not_a_bit(
    new_run: Callable[[str, int], Any], soak_seed: int, soak_log: Callable[[str], None]
) -> None:
    started = time.monotonic()
    done = check_kills(new_run, seed=soak_seed, **LONG)
    assert len(done) == LONG["deaths"]
    counts = {what: done.count(what) for what in sorted(set(done))}
    soak_log(f"{len(done)} deaths in {(time.monotonic() - started) / 60:.0f} min: {counts}")
