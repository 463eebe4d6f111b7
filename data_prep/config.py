"""The `data:` section: where documents come from and how they become rows."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.schema import PathValue, Section


class SourceConfig(Section):
    """One source of documents: a path or glob on this machine's disks, or a URL."""

    path: str | None = None
    """A file, a folder (all files below it) or a glob; relative to the current folder."""
    url: str | None = None
    """An http(s) address of one file; it is fetched once into the shards' cache."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """What the fetched file must hash to."""
    size_bytes: int | None = Field(default=None, gt=0)
    """How long the fetched file must be."""
    name: str | None = None
    """What tables and `inspect` call it; default: the path or URL."""
    fields: dict[Literal["text", "prompt", "completion", "messages"], str] = Field(default_factory=dict)
    """Which of the rows' columns play a role, where their names do not tell."""

    epochs: float = Field(default=1.0, gt=0)
    """How often its documents are trained on in one epoch of the whole; with weights: at most."""
    weight: float | None = Field(default=None, gt=0)
    """Its share of the trained tokens, relative to the other sources' weights; default: what there is."""

    @model_validator(mode="after")
    def check_one_place(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("give exactly one of 'path' and 'url'")
        if self.path is not None and (self.sha256 or self.size_bytes):
            raise ValueError("'sha256' and 'size_bytes' are checked for a 'url' only")
        return self

    @property
    def label(self) -> str:
        return self.name or self.path or self.url or ""


class TrainTokenizer(Section):
    """Train a byte-level BPE on the corpus itself."""

    vocab_size: int = Field(ge=512, le=262_144)


class TokenizerConfig(Section):
    """Where the tokenizer comes from, if not from the model."""

    path: str | None = None
    """A Hugging Face folder or hub id."""
    train: TrainTokenizer | None = None

    @model_validator(mode="after")
    def check_one_origin(self) -> Self:
        if (self.path is None) == (self.train is None):
            raise ValueError("give exactly one of 'path' and 'train'")
        return self


class DataConfig(Section):
    """How the corpus becomes shards."""

    sources: list[SourceConfig] = Field(min_length=1)
    folder: PathValue | None = None
    """Where the shards go; default: `shards` in the run's folder."""
    tokenizer: TokenizerConfig | None = None
    """Default: the tokenizer of `model.path`."""
    chat_template: str | None = None
    """'chatml' or the path of a Jinja file; default: the tokenizer's own."""
    engine: Literal["auto", "gigatoken", "tokenizers"] = "auto"
    """What turns text into ids. auto: gigatoken from 4 MiB on, where it is installed and proves itself."""
    row_tokens: int = Field(default=1024, ge=16, multiple_of=8)
    """Tokens in a row: the model's sequence length."""
    packing: Literal["auto", "concat", "best_fit"] = "auto"
    """concat: running text, documents cut where a row ends. best_fit: no document cut unless longer than a row."""
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of documents held out, chosen by each document's own hash."""
    shard_rows: int = Field(default=16_384, gt=0)
    slice_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Bytes of source that one task reads."""
    executor: Literal["auto", "local", "ray"] = "auto"
    """auto: local processes for small corpora, Ray from 256 MB."""
    workers: int | None = Field(default=None, gt=0)
    """Tasks at a time; default: one for each CPU."""
