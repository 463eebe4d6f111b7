"""The errors that a person can fix, and the exit codes that scripts act on.

ShardlineError              the command cannot continue (exit code 2: a person must fix something)
├── ConfigError             the run's YAML is wrong, or does not fit the world or the data
├── DataError               a source, document, shard or manifest is missing, damaged or not ours
│   └── DamagedRowsError    rows differ from what was written, which only the rank that reads them sees
├── ClusterError            Slurm, Ray, the launcher or the disk is not what we need
├── CheckpointError         a checkpoint or export is missing, incomplete or belongs to another run
└── TrainingError           the training itself goes wrong, and a restart would not help
"""

from __future__ import annotations

import errno

EXIT_DONE = 0  # the next job in the chain may start
EXIT_FAILED = 1  # a bug or a lost node: start again from the last checkpoint
EXIT_USER_ACTION = 2  # configuration, data, disk: no restart until a person has acted
EXIT_STOPPED = 75  # stopped on purpose with a good checkpoint: put the job back into the queue
EXIT_INTERRUPTED = 130  # a person pressed Ctrl-C, and nothing was saved: no restart

# these fail again at every start until a person acts: rights, paths, a disk that is full or read-only
USER_FIXABLE = {
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
    """Return the exit code of a command that ended with an error."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    is_fixable = isinstance(error, OSError) and error.errno in USER_FIXABLE
    return EXIT_USER_ACTION if is_fixable or isinstance(error, ShardlineError) else EXIT_FAILED


class ShardlineError(Exception):
    """An expected failure: its message says what is, what should be, and what to do next."""


class ConfigError(ShardlineError):
    """The configuration cannot be used; fix the YAML or the command line."""


class DataError(ShardlineError):
    """A source, document, shard or manifest cannot be used."""


class DamagedRowsError(DataError):
    """Rows of a shard differ from what was written; only the rank that reads them can tell."""


class ClusterError(ShardlineError):
    """The machine, the cluster or the launcher is not what the run needs."""


class CheckpointError(ShardlineError):
    """A checkpoint or an export cannot be used."""


class TrainingError(ShardlineError):
    """The loss, the gradients or repeated failures show that neither another step nor a restart would help."""
