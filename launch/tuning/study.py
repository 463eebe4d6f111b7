"""A study's folder, which several processes and hosts can share.

    study.json        what is searched; a study goes on only with the same run, data and space
    journal.log       Optuna's journal of all trials
    trial-003/        the run of trial 3: a normal run's folder, with trial.json
    trial-003.yaml    its configuration
    trial-003.log     what its training printed
    trial-003.lock    held by the process that runs it
    results.json, results.html, best.yaml    rewritten after each trial

A trial that is RUNNING in the journal and whose lock nobody holds was interrupted: the next process resumes it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import write_json
from cluster.disk.lock_holder import Holder
from cluster.disk.locks import LockFile, hold_lock, wait_for_lock
from cluster.environment import slurm_job
from cluster.errors import ClusterError, ConfigError
from cluster.journal.records import cut_torn_line
from launch.config import RunConfig
from launch.tuning.space import Space

log = logging.getLogger(__name__)

VERSION = 1
STARTUP_TRIALS = 5  # sampled at random before TPE learns from them
PRUNE_AFTER_TRIALS = 3  # complete trials that a trial must be compared with before it can be pruned
WORKER = "shardline tune"  # how a lock names its holder


@dataclass(frozen=True)
class StudyFolder:
    """The names in a study's folder."""

    root: Path

    @property
    def definition(self) -> Path:
        return self.root / "study.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal.log"

    @property
    def best(self) -> Path:
        return self.root / "best.yaml"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def page(self) -> Path:
        return self.root / "results.html"

    @property
    def lock(self) -> Path:
        """Held for moments: while a trial is chosen, and while results are written."""
        return self.root / "study.lock"

    def trial(self, number: int) -> Path:
        return self.root / f"trial-{number:03}"

    def trial_lock(self, number: int) -> LockFile:
        return LockFile(self.root / f"trial-{number:03}.lock", holder=Holder.here(WORKER))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process chooses a trial or writes results, and keep it so."""
        with wait_for_lock(LockFile(self.lock, holder=Holder.here(WORKER)), lambda: False):
            yield


def optuna() -> Any:
    """Return the library, quiet. Raises ConfigError if it is not installed."""
    try:
        import optuna as library
    except ImportError:
        raise ConfigError("optuna is not installed here; to tune: pip install -e '.[tune]'") from None
    library.logging.set_verbosity(library.logging.WARNING)
    return library


def open_study(folder: StudyFolder, run: RunConfig, space: Space, data: str) -> Any:
    """Open the study, or begin it with the run's own values as trial 0, if they are inside of the space.

    `data` is the digest of the shards. Raises ConfigError if the folder holds a study of something else.
    """
    library = optuna()
    folder.root.mkdir(parents=True, exist_ok=True)
    record = json.loads(json.dumps(definition_of(run, space, data)))
    with folder.alone():
        if folder.definition.exists():
            check_same(folder, record)
        else:
            write_json(folder.definition, record)
        with journal_alone(library, folder.journal):
            cut_torn_line(folder.journal)
        study = library.create_study(
            storage=storage_of(library, folder.journal),
            study_name="tune",
            load_if_exists=True,
            pruner=library.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER_TRIALS),
        )
        own = space.own_values(run)
        if own is not None and not study.get_trials(deepcopy=False):
            study.enqueue_trial(own)
        elif own is None:
            log.info("no trial has the run's own values: not all of them are in %s", space.source)
    return study


@contextmanager
def journal_alone(library: Any, journal: Path) -> Iterator[None]:
    """Wait until no other process writes to the journal, and keep it so: a line that is being written looks torn."""
    lock = library.storages.journal.JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def storage_of(library: Any, journal: Path) -> Any:
    files = library.storages.journal
    return library.storages.JournalStorage(files.JournalFileBackend(str(journal)))


def definition_of(run: RunConfig, space: Space, data: str) -> dict[str, Any]:
    """Return what two calls of a study must have in common."""
    values = run.model_dump(mode="json")
    return {
        "version": VERSION,
        "data": data,
        **{k: values[k] for k in ("model", "train", "seed")},
        "space": space.as_record(),
    }


def check_same(folder: StudyFolder, record: dict[str, Any]) -> None:
    """Raise ConfigError if the folder's study is of another run, other data or another space."""
    try:
        then = dict(json.loads(folder.definition.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ConfigError(f"{folder.definition}: damaged; restore it, or name another folder: --study FOLDER") from None
    changed = [key for key in {**then, **record} if then.get(key) != record.get(key)]
    if changed:
        raise ConfigError(
            f"{folder.root}: this study was begun with another {', '.join(changed)}, and its trials cannot be compared"
            " with new ones; restore what was changed, or begin another study: --study FOLDER"
        )


def sampler_of(seed: int, number: int) -> Any:
    """Return the sampler of one trial. A sampler that lives for the whole study would repeat itself after a restart."""
    samplers = optuna().samplers
    return samplers.TPESampler(seed=(seed * 1_000_003 + number) % 2**32, n_startup_trials=STARTUP_TRIALS)


@contextmanager
def claimed_trial(study: Any, folder: StudyFolder, seed: int, trials: int) -> Iterator[Any | None]:
    """Take the next trial for this process: an interrupted one, else a new one; None if nothing is left to do.

    `trials` is how many the study has in all. No other process gets the trial while the context lasts.
    """
    with ExitStack() as held:
        number = take(study, folder, trials, held)
        if number is None:
            yield None
            return
        frozen = study.get_trials(deepcopy=False)[number]
        study.sampler = sampler_of(seed, number)
        trial = optuna().trial.Trial(study, frozen._trial_id)  # resumes a trial: the values that it has stay
        trial.set_user_attr("job", slurm_job())
        yield trial


def take(study: Any, folder: StudyFolder, trials: int, held: ExitStack) -> int | None:
    """Return the number of the trial that this process now holds; None if there is none to take.

    To know whether a process on another host is alive takes up to minutes: the study is not locked for so long.
    """
    running = running_trials(study)
    ours = [number for number, job in running.items() if job is not None and job == slurm_job()]
    for number in ours + [number for number in running if is_free(folder.trial_lock(number))]:
        if try_take(study, folder, number, held):
            return number
    with folder.alone():
        waiting = optuna().trial.TrialState.WAITING
        while sum(trial.state != waiting for trial in study.get_trials(deepcopy=False)) < trials:
            number = int(study.ask().number)
            if try_take(study, folder, number, held):  # another process may have seen it without a lock, and taken it
                return number
    for number in running_trials(study):  # of hosts that cannot be seen from here
        if try_take(study, folder, number, held):
            return number
    return None


def running_trials(study: Any) -> dict[int, str | None]:
    """Return the trials that were begun and are not over, with the Slurm job that ran each last."""
    running = study.get_trials(deepcopy=False, states=(optuna().trial.TrialState.RUNNING,))
    return {int(trial.number): trial.user_attrs.get("job") for trial in running}


def try_take(study: Any, folder: StudyFolder, number: int, held: ExitStack) -> bool:
    """Hold the lock of a trial for as long as `held` lasts, unless another process does or has ended the trial."""
    with ExitStack() as tried:
        try:
            tried.enter_context(hold_lock(folder.trial_lock(number)))
        except ClusterError:
            return False
        if number not in running_trials(study):
            return False
        held.enter_context(tried.pop_all())
        return True


def is_free(lock: LockFile) -> bool:
    """Return whether it is plain that nobody holds a lock."""
    owner = lock.owner()
    return owner is None or Holder.read(owner).is_alive() is False
