"""The manifest of prepared data: what was prepared, from what, and where it lies."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import digest_of
from cluster.environment import slurm_job
from cluster.errors import DataError
from data_prep.shards.blocks import AGAIN

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A segment of one document in a row."""

    tokens: int
    source: int
    position: int
    start: int


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """What the manifest says of one shard file; `path` is relative to the data folder.

    `table_at` and `table_sha256` are of the table of blocks at the file's end. `largest_id` is that of all its tokens,
    padding included; None in shards of older versions.
    """

    path: str
    rows: int
    tokens: int
    trained_tokens: int
    bytes: int
    sha256: str
    table_at: int = 0
    table_sha256: str = ""
    largest_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """What the manifest says of one file of the data folder that is not a shard."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file that documents were read from.

    `reading` is how, as JSON, where its name does not tell; `joined` how its rows were put together, if they were.
    """

    source: str
    path: str
    bytes: int
    sha256: str
    reading: str = ""
    joined: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that training must know of the data, and what became of every document.

    `documents` counts, by source label, `files`, files `passed_over` by suffix, documents `read`, `kept` and `rejected`
    by reason, what was fixed (`changed`), and of the kept ones, before packing, `tokens` and `trained_tokens`;
    `tokens` is the ledger of the packed tokens: `trained`, `masked` and `padding` sum to rows x row_tokens of all
    splits. `fill` is the share of each split's rows that is not padding. `engine` is what made the ids, with its
    version, and how it was proved against `tokenizers`. `added_tokens` are those that the tokenizer has beyond the one
    of the model or the folder that it was read from. `others` are the files that are no shards: all that training
    reads is listed with its sha256, and `digest` is over the whole.
    """

    version: int
    config_digest: str
    tokenizer_digest: str
    template_digest: str
    row_tokens: int
    vocab_size: int
    packing: str
    files: list[SourceFile]
    splits: dict[str, list[ShardInfo]]
    documents: dict[str, dict[str, Any]]
    tokens: dict[str, int]
    conversational: bool
    fill: dict[str, float] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    added_tokens: list[str] = field(default_factory=list)
    others: list[ListedFile] = field(default_factory=list)
    digest: str = field(default="")

    def rows(self, split: str) -> int:
        return sum(shard.rows for shard in self.splits[split])

    def trained_tokens(self, split: str) -> int:
        return sum(shard.trained_tokens for shard in self.splits[split])

    def trained_from(self) -> list[ShardInfo]:
        """Return the shards that training reads: those of the rows, and of the held-out rows."""
        return [*self.splits["train"], *self.splits["validation"]]

    @property
    def largest_id(self) -> int | None:
        """The largest id of all rows; None where a shard of an older version does not tell."""
        found = [shard.largest_id for shards in self.splits.values() for shard in shards]
        return None if None in found else max((i for i in found if i is not None), default=None)

    @property
    def content_digest(self) -> str:
        """The digest of the rows alone: the same for a corpus that was moved and prepared again."""
        rows = {split: [[shard.rows, shard.sha256] for shard in shards] for split, shards in self.splits.items()}
        return digest_of({"tokenizer": self.tokenizer_digest, "row_tokens": self.row_tokens, "rows": rows})

    def with_digest(self) -> Manifest:
        """Return the manifest with its digest over everything else."""
        values = asdict(self)
        values.pop("digest")
        return Manifest(
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name != "digest"}, digest=digest_of(values)
        )


def elsewhere() -> str:
    """Return what else may be wrong in a job of Slurm."""
    return ", or on this host: a folder that its hosts do not share is another one on each" if slurm_job() else ""


def read_manifest(folder: Path) -> Manifest:
    """Read and check a data folder's manifest. Raises DataError if it is absent, damaged or of another version."""
    path = folder / MANIFEST
    require_no_pipe(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        first = "run `shardline prepare RUN.yaml` first"
        raise DataError(f"{path}: there is no prepared data here; {first}{elsewhere()}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); run `shardline prepare RUN.yaml` again") from None
    if not isinstance(values, dict) or values.get("version") != FORMAT_VERSION:
        version = values.get("version") if isinstance(values, dict) else None
        raise DataError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; run `shardline prepare` again"
        )
    found = digest_of({name: value for name, value in values.items() if name != "digest"})
    if found != values.get("digest"):
        raise DataError(f"{path}: its digest does not match its content; run `shardline prepare RUN.yaml` again")
    try:
        values["files"] = [SourceFile(**item) for item in values["files"]]
        values["others"] = [ListedFile(**item) for item in values.get("others", [])]
        values["splits"] = {name: [ShardInfo(**item) for item in shards] for name, shards in values["splits"].items()}
        return Manifest(**values)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); run `shardline prepare RUN.yaml` again") from None


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the digest of what turns text into ids: a fast tokenizer's rules and its special ids."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.update(truncation=None, padding=None)  # settings of a call, not of the tokenizer
    return digest_of({"rules": rules, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id})


def template_digest(chat_template: str | None) -> str:
    """Return the digest of a chat template's text."""
    return digest_of(chat_template)


def check_shards(folder: Path, shards: Iterable[ShardInfo | ListedFile]) -> None:
    """Raise DataError if a shard or another file is missing, is no file or has another size; none is opened."""
    for shard in shards:
        check_size(folder, shard.path, shard.bytes)


def require_no_pipe(path: Path) -> None:
    """Raise DataError if a path leads to what is neither a file nor absent: opening a pipe would wait for a writer."""
    found = stat_of(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: is a {kind_of(found)}, not a file; {AGAIN}")


def stat_of(path: Path) -> os.stat_result | None:
    """Return what a path leads to; None if there is nothing."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def kind_of(found: os.stat_result) -> str:
    """Return what something that is no file is, in a word."""
    kinds = {stat.S_IFIFO: "named pipe", stat.S_IFDIR: "folder", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(found.st_mode), "device")


def check_size(folder: Path, relative: str, size: int) -> None:
    """Raise DataError if a file that the manifest lists is missing, is no file or has another size.

    A single `stat`: every rank calls this for every shard it opens, and one shared disk answers them all.
    """
    path = folder / relative
    found = stat_of(path)
    if found is None:
        raise DataError(f"{path}: missing, though the manifest lists it; run `shardline prepare RUN.yaml` again")
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: is a {kind_of(found)}, not a file; {AGAIN}")
    if found.st_size != size:
        raise DataError(f"{path}: {found.st_size} bytes, the manifest says {size}; {AGAIN}")
