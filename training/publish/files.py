"""The files of a push: those of the export as they are, the card, and a check that nothing private is in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cluster.disk.atomic_files import sha256_of
from cluster.errors import ConfigError
from cluster.model_files import ADAPTER_CONFIG
from training.export.export_record import RECORD
from training.publish.private_text import leaks, local_paths, secrets_in
from training.publish.subject import Subject

BINARY = (".safetensors", ".gguf", ".bin", ".model", ".pt")
TEXT_BYTES = 1 << 27  # no text file of an export is larger


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file as it will be in the repository: one of this disk, or a text. `ours`: written for this push."""

    name: str
    source: Path | bytes
    ours: bool = False

    @cached_property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest() if isinstance(self.source, bytes) else sha256_of(self.source)

    @property
    def git_sha1(self) -> str:
        """The id that git gives the file; for small files, which the Hub keeps in git itself."""
        content = self.content
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()

    @property
    def content(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


def export_files(subject: Subject) -> list[Upload]:
    """Return the files of an export; an adapter's configuration with the base model's name on the Hub."""
    names = [*sorted(subject.record.files), RECORD]
    return [Upload(name=name, source=source_of(subject, name)) for name in names]


def source_of(subject: Subject, name: str) -> Path | bytes:
    path = subject.folder / name
    if name != ADAPTER_CONFIG:
        return path
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("base_model_name_or_path") == subject.base_id:
        return path
    return (json.dumps({**values, "base_model_name_or_path": subject.base_id}, indent=2) + "\n").encode()


def text_files(texts: dict[str, str]) -> list[Upload]:
    """Return texts that were written for this push."""
    return [Upload(name=name, source=text.encode(), ours=True) for name, text in texts.items()]


def check_private(uploads: Iterable[Upload], known: Sequence[str]) -> None:
    """Raise ConfigError if a text file holds a secret or a local path. `known` are texts that must be in none."""
    found = [problem for upload in uploads if is_text(upload) for problem in problems_of(upload, list(known))]
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise ConfigError(
            f"nothing was uploaded, as private data would be: {'; '.join(found[:3])}{more}; remove it from the"
            " configuration or the tokenizer's files and export again, or write the card yourself (--card FILE)"
        )


def is_text(upload: Upload) -> bool:
    return not upload.name.endswith(BINARY) and upload.size < TEXT_BYTES


def problems_of(upload: Upload, known: list[str]) -> list[str]:
    """Return what is private in a file, where, for people; never the private text itself."""
    text = upload.content.decode("utf-8", errors="replace")
    found = list(leaks(text, known) if upload.ours else secrets_in(text, known))
    if upload.name.endswith(".json") and upload.name != "tokenizer.json":
        found += [(1, "a path of this machine") for _ in local_paths(json.loads(text))]
    return [f"{upload.name}, line {line}: {kind}" for line, kind in dict.fromkeys(found)]
