"""The errors a person can mend, and the exit codes that scripts act on.

ShardlineError              the run cannot go on (exit code 2: a person must mend something)
├── ConfigError             the run's YAML is wrong, or does not fit the world or the data
├── DataError               a source, document, shard or manifest is missing, damaged or not ours
│   └── DamagedRowsError    rows are not what was written, which only the rank that reads them sees
├── ClusterError            Slurm, Ray, the launcher or the disk is not what we need
├── CheckpointError         a checkpoint or export is missing, incomplete or belongs to another run
└── TrainingError           the training itself goes wrong, and doing it again would not help
"""

from __future__ import annotations

import errno

EXIT_DONE = 0  # the next job in the chain may start
EXIT_FAILED = 1  # a bug or a lost node: start again from the last checkpoint
EXIT_USER_ACTION = 2  # configuration, data, disk: nobody restarts until a person has acted
EXIT_STOPPED = 75  # stopped on purpose with a good checkpoint: put me back in the queue
EXIT_INTERRUPTED = 130  # a person pressed Ctrl-C, and nothing was saved for it: nobody restarts

# what the operating system says again to every start: rights, paths, a disk that is full or read-only
MENDABLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a command that an error has ended."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    is_mendable = isinstance(error, OSError) and error.errno in MENDABLE
    return EXIT_USER_ACTION if is_mendable or isinstance(error, ShardlineError) else EXIT_FAILED


class ShardlineError(Exception):
    """An expected failure: its text says what is, what should be, and what to do next."""


class ConfigError(ShardlineError):
    """The configuration cannot be used; fix the YAML or the command line."""


class DataError(ShardlineError):
    """A source, document, shard or manifest cannot be used."""


class DamagedRowsError(DataError):
    """Rows of a shard are not the bytes that were written; only the rank that reads them can tell."""


class ClusterError(ShardlineError):
    """The machine, the cluster or the launcher is not what the run needs."""


class CheckpointError(ShardlineError):
    """A checkpoint or an export cannot be used."""


class TrainingError(ShardlineError):
    """The loss, the gradients or the starts of a run leave no hope that going on would help."""
