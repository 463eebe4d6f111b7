"""`shardline tune`: search the values of some keys of a run's YAML, each trial a normal run on the same shards.

A trial's score is its held-out loss after its last step: that of the weights that `shardline export` would export.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.disk.lock_holder import Holder
from cluster.disk.locks import LockFile, hold_lock
from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, ConfigError, TrainingError
from cluster.machine import host_name
from cluster.wording import count_of
from data_prep.shards import check_shards, read_manifest
from launch.arguments import add_run, positive
from launch.config import RunConfig
from launch.runs.check import check_fits, check_source
from launch.saved_config import load
from launch.tuning.results import best_of, results_of, table
from launch.tuning.space import Space, check_space, read_space, shown
from launch.tuning.study import WORKER, StudyFolder, claimed_trial, is_free, open_study, optuna, running_trials
from launch.tuning.study_files import write_results
from launch.tuning.trial_run import Outcome, State, StopSignals, TrialRun, trial_values
from launch.wording import as_typed, say

log = logging.getLogger(__name__)

LAUNCH = Path(__file__).resolve().parents[1]
FAILURES = 3  # failed trials in a row, after which the search stops
TRIALS = 20


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_run(command)
    command.add_argument("--space", type=Path, required=True, help="YAML: the keys to search, and between which values")
    command.add_argument("--trials", type=positive, default=TRIALS, help="of the whole study; default: %(default)s")
    command.add_argument("--study", type=Path, metavar="FOLDER", help="default: the run's folder with -tune added")
    command.add_argument("--ranks", type=positive, help="of each trial, as in `shardline train`")
    command.add_argument(
        "--slurm",
        nargs="?",
        const="",
        metavar="OPTIONS",
        help="submit a job array, one task for each trial, with these options of sbatch:"
        " --slurm='-N2 --gpus-per-node=8'",
    )
    command.add_argument("--task", action="store_true", help="for launch/tune.sh: run one trial by launch/train.sh")


def run(options: argparse.Namespace) -> int:
    """Search; every call resumes what an earlier one has left unfinished."""
    run = load(options)
    space = read_space(options.space)
    manifest = read_manifest(run.shards)
    is_local = options.slurm is None and not options.task
    check_fits(run, manifest)
    check_source(run)
    check_shards(run.shards, manifest.trained_from())
    if not run.train.validation_rows or not manifest.rows("validation"):
        raise ConfigError(
            "tune compares held-out losses, and there are no held-out rows: set data.validation_fraction and"
            " train.validation_rows above 0, and run `shardline prepare` again"
        )
    check_space(space, run)
    root = run.paths.root
    folder = StudyFolder(options.study or root.with_name(f"{root.name}-tune"))
    optuna()
    with ExitStack() as held:
        if is_local:  # before the study is opened: a start that is refused changes nothing
            held.enter_context(
                hold_lock(LockFile(folder.root / f"tune-{host_name()}.lock", holder=Holder.here(WORKER)))
            )
        study = open_study(folder, run, space, manifest.content_digest)
        search = Search(run, space, folder, study, manifest.rows("train"), options)
        if options.slurm is not None:
            return search.submit(options.slurm)
        return search.run_task() if options.task else search.run_here()


class Search:
    """A study, and how this process runs its trials."""

    def __init__(
        self, run: RunConfig, space: Space, folder: StudyFolder, study: Any, rows: int, options: argparse.Namespace
    ) -> None:
        self.run, self.space, self.folder, self.study, self.rows = run, space, folder, study, rows
        self.options = options
        self.signals = StopSignals()

    def run_here(self) -> int:
        """Run trials on this machine until the study has all; then, or when stopped, print what was found."""
        failures: list[str] = []
        with self.signals.installed():
            while not self.signals.asked and len(failures) < FAILURES:
                outcome = self.run_next(self.train_command())
                if outcome is None or outcome.state is State.UNFINISHED:
                    break
                failures = [*failures, outcome.reason] if outcome.state is State.FAILED else []
            is_stopped = outcome is not None and outcome.state is State.UNFINISHED
        self.tell_results()
        if len(failures) == FAILURES:
            raise TrainingError(f"the last {FAILURES} trials failed; the last one with: {failures[-1]}")
        if self.signals.asked or is_stopped:
            say(f"to continue: {self.command()}")
            return EXIT_INTERRUPTED if self.signals.is_interrupted else EXIT_STOPPED
        if best_of(results_of(self.study, self.space)) is None:
            raise TrainingError("no trial has been completed; the table above says why each of them ended")
        return EXIT_DONE

    def run_task(self) -> int:
        """Run one trial in this Slurm job; 75 if it was stopped: launch/train.sh requeues it where that is meant."""
        with self.signals.installed():
            outcome = self.run_next(["bash", str(LAUNCH / "train.sh")])
        if outcome is None:
            say("nothing to do: each trial of the study is over, or another process runs it")
        if outcome is not None and not outcome.state.is_over:
            return EXIT_STOPPED if outcome.state is State.UNFINISHED else EXIT_FAILED
        if self.trials_left() <= 0:
            self.tell_results()
        return EXIT_DONE

    def run_next(self, command: Sequence[str]) -> Outcome | None:
        """Run the next trial and record how it ended; None if there is none left to run."""
        with claimed_trial(self.study, self.folder, self.run.seed, self.options.trials) as trial:
            if trial is None:
                return None
            chosen = self.space.suggest(trial)
            trial_run = TrialRun(folder=self.folder.trial(trial.number), trial=trial, command=command)
            is_resumed = trial_run.folder.exists()
            log.info("trial %d%s: %s", trial.number, ", resumed" if is_resumed else "", shown(chosen))
            outcome = self.train(trial_run, chosen)
            self.record(trial_run, outcome, chosen)
            return outcome

    def train(self, trial_run: TrialRun, chosen: dict[str, Any]) -> Outcome:
        try:
            trial_run.write(trial_values(self.run, chosen, trial_run.folder, self.rows))
        except ConfigError as error:
            return Outcome(state=State.FAILED, reason=str(error))
        return trial_run.train(self.signals, lambda told: log.info("trial %d: %s", trial_run.trial.number, told))

    def record(self, trial_run: TrialRun, outcome: Outcome, chosen: dict[str, Any]) -> None:
        """Tell the study how a trial ended, unless it will be resumed, and write the results so far."""
        states = optuna().trial.TrialState
        trial = trial_run.trial
        trial_run.write_outcome(outcome, chosen)
        trial.set_user_attr("reason", outcome.reason)
        if outcome.state is State.COMPLETE:
            self.study.tell(trial.number, outcome.loss)
        elif outcome.state.is_over:
            self.study.tell(trial.number, state=states.PRUNED if outcome.state is State.PRUNED else states.FAIL)
        with self.folder.alone():
            best = best_of(write_results(self.study, self.folder, self.run, self.space))
        loss = "" if outcome.loss is None else f", held-out loss {outcome.loss:.4f}"
        why = f": {outcome.reason}" if outcome.reason else ""
        told = f"; best so far: trial {best.number}, {best.loss:.4f}" if best else ""
        log.info("trial %d %s%s%s%s", trial.number, outcome.state.value, loss, why, told)

    def tell_results(self) -> None:
        """Print the table and what to do with the best trial."""
        with self.folder.alone():
            results = write_results(self.study, self.folder, self.run, self.space)
        say(f"{table(results, self.space)}\n{self.folder.page}")
        best = best_of(results)
        if best is not None:
            trial = shlex.quote(str(self.folder.trial(best.number)))
            say(f"next: shardline export {trial}, or train anew: shardline train {shlex.quote(str(self.folder.best))}")

    def train_command(self) -> list[str]:
        ranks = [f"--ranks={self.options.ranks}"] if self.options.ranks else []
        return [sys.executable, "-m", "launch", "train", "--restart", *ranks]

    def command(self) -> str:
        return f"shardline tune {as_typed(self.options)} {shlex.join(self.arguments())}"

    def arguments(self) -> list[str]:
        study = [f"--study={self.options.study}"] if self.options.study else []
        ranks = [f"--ranks={self.options.ranks}"] if self.options.ranks else []
        return [f"--space={self.options.space}", f"--trials={self.options.trials}", *study, *ranks]

    def trials_left(self) -> int:
        over = sum(result.state != "unfinished" for result in results_of(self.study, self.space))
        return int(self.options.trials) - over

    def submit(self, slurm_options: str) -> int:
        """Submit a job array with a task for each trial that is not over."""
        left = self.trials_left()
        if left <= 0:
            self.tell_results()
            return EXIT_DONE
        held = [number for number in running_trials(self.study) if not is_free(self.folder.trial_lock(number))]
        if held:
            log.warning(
                "%s of this study may be running now; tasks that find nothing left to do will end at once",
                count_of(len(held), "trial"),
            )
        overrides = [word for override in self.options.overrides for word in ("-o", override)]
        own = [str(LAUNCH / "tune.sh"), str(self.options.run), *overrides, *self.arguments()]
        command = ["sbatch", f"--array=0-{left - 1}", f"--job-name={self.run.name}-tune"]
        command += [*shlex.split(slurm_options), *own]
        log.info("%s", shlex.join(command))
        try:
            code = subprocess.run(command, check=False).returncode
        except FileNotFoundError:
            raise ConfigError(
                "sbatch is not here: submit on a host of the Slurm cluster, or leave out --slurm"
            ) from None
        if code:
            raise ConfigError(f"sbatch refused the job array with exit code {code}; correct --slurm='{slurm_options}'")
        say(f"when the tasks have ended: {self.folder.page}, {self.folder.best}; to see the table: {self.command()}")
        return EXIT_DONE
