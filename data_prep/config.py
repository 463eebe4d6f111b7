"""The `data:` section: where documents come from and how they become rows."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.schema import PathValue, Section


class SourceConfig(Section):
    """One source of documents: on this machine's disks, at an address, or a dataset of the Hugging Face Hub."""

    path: str | None = None
    """A file, a folder (all files below it) or a glob; relative to the current folder."""
    url: str | None = None
    """An address that is fetched once into the shards' cache: https:// of one file; hf://, s3://, gs:// and all else
    that fsspec knows, of a file, a folder or a glob."""
    dataset: str | None = None
    """The id of a Hub dataset, as OWNER/NAME or OWNER/NAME@REVISION."""
    split: str | None = None
    """Which of the dataset's files are taken, where their names tell; default: train."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """What the fetched file must hash to."""
    size_bytes: int | None = Field(default=None, gt=0)
    """How long the fetched file must be."""
    name: str | None = None
    """What tables and `inspect` call it; default: the path, URL or dataset."""
    fields: dict[Literal["text", "prompt", "completion", "messages"], str] = Field(default_factory=dict)
    """Which of the rows' columns play a role, where their names do not tell. `messages: "turn*"` takes all columns of
    such names for what two people say in turn."""
    html: Literal["article", "plain"] = "article"
    """article: a web page's article without menus and comments. plain: all of its text."""

    @model_validator(mode="after")
    def check_one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.url, self.dataset)) != 1:
            raise ValueError("give exactly one of 'path', 'url' and 'dataset'")
        if self.url is None and (self.sha256 or self.size_bytes):
            raise ValueError("'sha256' and 'size_bytes' are checked for a 'url' only")
        if self.dataset is None and self.split is not None:
            raise ValueError("'split' is for a 'dataset'; of a 'url' name the files with a glob")
        return self

    @property
    def address(self) -> str | None:
        """Where the source's files are fetched from; None if they are on a disk here."""
        return self.url if self.dataset is None else f"hf://datasets/{self.dataset}"

    @property
    def label(self) -> str:
        return self.name or self.path or self.url or self.dataset or ""


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
