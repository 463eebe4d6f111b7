"""A push: what it would change in a repository of the Hub, one commit that does it, and a look at what arrived.

The library uploads large files before the commit and asks the Hub first which it has, so a push that was cut sends only
what is missing. Small files travel in the commit itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from cluster.errors import ClusterError, ConfigError
from training.publish.files import Upload

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["model", "space"]
Action = Literal["create", "replace", "skip", "remove", "keep"]
READ_TIMEOUT_S = 20.0
GIT_SETTINGS = ".gitattributes"  # the Hub's own: which files are large
# Files of a model in a repository that this push does not bring: left behind by an earlier push, and loaded in place of
# or together with the new ones. transformers takes model.safetensors before an index, and an adapter before nothing.
SHADOWING = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*",
    "adapter_*",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
    "shardline.json",
    "loss.svg",
)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file as the Hub knows it: by sha256 if it is large, else by git's own id."""

    size: int
    sha256: str | None
    git_sha1: str | None

    def equals(self, upload: Upload) -> bool:
        if self.size != upload.size:
            return False
        return self.sha256 == upload.sha256 if self.sha256 else self.git_sha1 == upload.git_sha1


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A repository of the Hub at one commit."""

    commit: str
    is_private: bool
    files: dict[str, RemoteFile]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What becomes of one file of the repository."""

    action: Action
    name: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Push:
    """What is to be in a repository. `private`: whether it must be a private one; else it stays as it is."""

    repo: str
    kind: Kind
    uploads: Sequence[Upload]
    private: bool
    message: str
    changes: list[Change] = field(default_factory=list)


def read_remote(api: HfApi, repo: str, kind: Kind, commit: str | None = None) -> Remote | None:
    """Return a repository's newest commit, or another one; None if there is no such repository that we may see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo, repo_type=kind, revision=commit, files_metadata=True, timeout=READ_TIMEOUT_S)
    except RepositoryNotFoundError:
        return None
    files = {
        one.rfilename: RemoteFile(size=one.size or 0, sha256=one.lfs.sha256 if one.lfs else None, git_sha1=one.blob_id)
        for one in getattr(info, "siblings", None) or []
    }
    return Remote(commit=str(info.sha), is_private=bool(info.private), files=files)


def changes_of(push: Push, remote: Remote | None) -> list[Change]:
    """Return what the push does to each file; files of ours first, then those that only the repository has."""
    there = remote.files if remote else {}
    found = [Change(action=action_of(one, there.get(one.name)), name=one.name, size=one.size) for one in push.uploads]
    others = sorted(there.keys() - {one.name for one in push.uploads} - {GIT_SETTINGS})
    shadowed = any(one.name.endswith(".safetensors") for one in push.uploads)  # a GGUF file is named where it is loaded
    return found + [
        Change(action="remove" if shadowed and is_shadowing(name) else "keep", name=name, size=there[name].size)
        for name in others
    ]


def action_of(upload: Upload, there: RemoteFile | None) -> Action:
    if there is None:
        return "create"
    return "skip" if there.equals(upload) else "replace"


def is_shadowing(name: str) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in SHADOWING)


def check_visibility(push: Push, remote: Remote | None) -> None:
    """Raise ConfigError if a private repository was asked for and it is public: creating it again changes nothing."""
    if push.private and remote is not None and not remote.is_private:
        raise ConfigError(
            f"--private: {push.repo} exists and is public, and a push does not change that; make it private in its"
            " settings on the Hub, or choose another name"
        )


def publish(api: HfApi, push: Push) -> tuple[Remote, list[Change]]:
    """Make the repository hold the files, in one commit; return it as the Hub has it then, and what was changed.

    Raises ConfigError if it may not be published there, ClusterError if what the Hub has is not what was sent.
    """
    remote = read_remote(api, push.repo, push.kind)
    check_visibility(push, remote)
    if remote is None:
        sdk = "gradio" if push.kind == "space" else None
        api.create_repo(push.repo, repo_type=push.kind, private=push.private or None, space_sdk=sdk, exist_ok=True)
        remote = read_remote(api, push.repo, push.kind)
        if remote is None:
            raise ClusterError(f"{push.repo}: was created, but this token may not see it; check the token's rights")
        check_visibility(push, remote)
    changes = changes_of(push, remote)
    commit = commit_changes(api, push, changes, remote)
    after = read_remote(api, push.repo, push.kind, commit)
    check_arrived(push, after, changes)
    return after or remote, changes


def commit_changes(api: HfApi, push: Push, changes: Sequence[Change], remote: Remote) -> str:
    """Send what is missing and commit it; return the id of the commit that then holds everything."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    actions = {change.name: change.action for change in changes}
    added = [one for one in push.uploads if actions[one.name] in ("create", "replace")]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationDelete(path_in_repo=name) for name, action in actions.items() if action == "remove"
    ]
    operations += [CommitOperationAdd(path_in_repo=one.name, path_or_fileobj=one.source) for one in added]
    if not operations:
        return remote.commit
    done = api.create_commit(
        push.repo,
        operations,
        repo_type=push.kind,
        commit_message=push.message,
        parent_commit=remote.commit,  # fails if somebody changed the repository since it was compared
    )
    return str(done.oid)


def check_arrived(push: Push, after: Remote | None, changes: Sequence[Change]) -> None:
    """Raise ClusterError unless the Hub reports each file with the size and the hash of ours, and no removed one."""
    there = after.files if after else {}
    wrong = [one.name for one in push.uploads if one.name not in there or not there[one.name].equals(one)]
    left = [change.name for change in changes if change.action == "remove" and change.name in there]
    if wrong or left:
        what = f"{wrong[0]} differs there from the file here" if wrong else f"{left[0]} is still there"
        raise ClusterError(f"{push.repo}: {what}, so the upload cannot be trusted; run the same command again")
