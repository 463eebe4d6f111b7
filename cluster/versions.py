"""Which code and which libraries a run is started with: written beside it, compared with nothing."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "deepspeed", "transformers")
GIT_TIMEOUT_S = 20.0

Versions = dict[str, str | bool | None]


@functools.cache
def versions() -> Versions:
    """Return this program's version and commit, and those of the libraries that decide a run's bits; None: not known.

    `dirty` says whether files of the commit were changed; new files do not count. Imports none of the libraries. The
    commit is that of the first call, which is to come at the start of a process: a checkout may change while it runs.
    """
    commit = described_commit(ROOT)
    return {
        "shardline": library_version("shardline"),
        "commit": commit and commit.removesuffix("-dirty"),
        "dirty": commit and commit.endswith("-dirty"),
        **{name: library_version(name) for name in LIBRARIES},
    }


def library_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def described_commit(root: Path) -> str | None:
    """Return the commit of a checkout, with '-dirty' appended if files were changed; None if git cannot say.

    That is where there is no git, or the folder is not a checkout of its own, or belongs to another user, or the disk
    does not answer: no reason for a run not to start.
    """
    if not (root / ".git").exists():  # git would find a repository around this folder
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def as_text(found: Versions) -> str:
    """Return the line that a person reads."""
    commit = (
        f"commit {found['commit']}{', changed since' if found['dirty'] else ''}" if found["commit"] else "no commit"
    )
    libraries = ", ".join(f"{name} {found[name] or 'not installed'}" for name in LIBRARIES)
    return f"shardline {found['shardline'] or 'not installed'} ({commit}); {libraries}"
