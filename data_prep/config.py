"""The `data:` section: where documents come from and how they become rows."""

from __future__ import annotations

import codecs
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.config_loading import PathValue, Section
from data_prep.files.formats import FormatName
from data_prep.rows.fields import Fields
from data_prep.rows.roles import Role


class SourceConfig(Section):
    """One source of documents: on this machine's disks, at an address, or a dataset of the Hugging Face Hub."""

    path: str | None = None
    """A file, a folder (all files below it) or a glob; relative to `relative_to`."""
    relative_to: PathValue | None = None
    """Default: the current folder. A run keeps it in its config.yaml, so that it can be named from any folder."""
    url: str | None = None
    """An address that is fetched once into the shards' cache: https:// of one file; hf://, s3://, gs:// and all else
    that fsspec knows, of a file, a folder or a glob."""
    dataset: str | None = None
    """The id of a Hub dataset, as OWNER/NAME or OWNER/NAME@REVISION."""
    split: str | None = None
    """Which of the dataset's files are taken, where their names tell; default: train. Of a `path`: of a local copy of a
    dataset, or wherever names tell it."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """What the fetched file must hash to."""
    size_bytes: int | None = Field(default=None, gt=0)
    """How long the fetched file must be."""
    name: str | None = None
    """What tables and `inspect` call it; default: the path, URL or dataset."""
    fields: Fields = Fields()
    """Which of the rows' columns are what, where their names do not tell (docs/rows.md)."""
    system: str | None = Field(default=None, min_length=1)
    """The system turn of every pair or conversation that has none of its own: a text, not a column."""
    roles: dict[str, Role] = Field(default_factory=dict)
    """Who is who, where the names that the data has for them do not tell: {speaker1: user, speaker2: assistant}."""
    markers: dict[Literal["system", "user", "assistant", "tool", "ignore"], str | list[str]] = Field(
        default_factory=dict
    )
    """What a turn begins with, in texts that hold a conversation: {user: "\\nQ:", assistant: "\\nA:"}. What stands
    under `ignore` is left out."""
    paths: Literal["best", "all"] | None = None
    """Which conversations a tree of messages holds: that of the best ranked answers (default), or all."""
    html: Literal["article", "plain"] = "article"
    """article: a web page's article without menus and comments. plain: all of its text."""
    format: FormatName | None = None
    """What the source's files are, whatever they are called; compression and archives are still told by the name."""
    encoding: str | None = None
    """What text files are in that are neither UTF-8 nor begin with a byte order mark: latin-1, cp1252, gb18030 ..."""
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    """What stands between the cells of a CSV or TSV file; default: found by a look at its lines."""
    columns: list[str] | None = Field(default=None, min_length=1)
    """The names of all columns of CSV or TSV files that have no header."""

    epochs: float = Field(default=1.0, gt=0)
    """How often its documents are trained on in one epoch of the whole; with weights: at most."""
    weight: float | None = Field(default=None, gt=0)
    """Its share of the trained tokens, relative to the other sources' weights; default: what there is."""

    @model_validator(mode="after")
    def check_rows(self) -> Self:
        if self.paths is not None and self.fields.parent_id is None:
            raise ValueError("'paths' is for trees: name the column of each message's parent in fields.parent_id")
        if self.markers and not self.fields.messages:
            raise ValueError("'markers' need the column that holds the texts: write `fields: {messages: COLUMN}`")
        if self.markers and not {"user", "assistant"} <= set(self.markers):
            raise ValueError("'markers' need both 'user' and 'assistant'")
        if self.fields.text and (self.system or self.roles):
            raise ValueError("running text ('fields.text') has nobody who speaks: remove 'system' and 'roles'")
        return self

    @model_validator(mode="after")
    def check_one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.url, self.dataset)) != 1:
            raise ValueError("give exactly one of 'path', 'url' and 'dataset'")
        if self.url is None and (self.sha256 or self.size_bytes):
            raise ValueError("'sha256' and 'size_bytes' are checked for a 'url' only")
        if self.url is not None and self.split is not None:
            raise ValueError("'split' is for a 'dataset' or a 'path'; of a 'url' name the files with a glob")
        return self

    @field_validator("encoding")
    @classmethod
    def check_encoding(cls, value: str | None) -> str | None:
        """Return the one name that Python has for an encoding."""
        if value is None:
            return None
        try:
            "x".encode(value)
            codecs.getincrementaldecoder(value)
        except (LookupError, UnicodeError):
            raise ValueError(
                f"{value!r} is no encoding; such are latin-1, cp1252, utf-16, gb18030, shift_jis"
            ) from None
        name = codecs.lookup(value).name
        return "utf-8" if name == "utf-8-sig" else name

    @model_validator(mode="after")
    def check_columns(self) -> Self:
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError("'columns' names a column twice")
        if self.format not in (None, "csv", "tsv") and (self.columns or self.separator):
            raise ValueError(f"'columns' and 'separator' are for CSV and TSV, and 'format' is {self.format}")
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


PrivateData = Literal["keep", "replace", "drop"]


class PrivacyConfig(Section):
    """What becomes of private data in a text: kept, replaced by its kind in brackets, or the document dropped."""

    email: PrivateData = "keep"
    """E-mail addresses."""
    phone: PrivateData = "keep"
    """Telephone numbers: international with their plus, North American with their separators."""
    ip: PrivateData = "keep"
    """IP addresses, version 4 and 6, that are public. Version numbers of four parts look the same."""
    card: PrivateData = "keep"
    """Numbers of payment cards, by issuer and check digit."""
    iban: PrivateData = "keep"
    """Numbers of bank accounts, by country and check digits."""


class CleaningConfig(Section):
    """What is mended in the texts, and which documents are left out. Every step can be switched off."""

    repair: bool = True
    """Undo UTF-8 that was read as Windows-1252 or Latin-1 (`cafÃ©`), by ftfy."""
    control_characters: bool = True
    """Remove control characters but tabs and ends of lines, which become `\\n`."""
    unicode: Literal["nfc", "nfkc", "off"] = "nfc"
    """The Unicode normal form. nfkc also replaces ligatures, full-width letters and their like: it loses something."""
    whitespace: bool = True
    """Running text only: remove spaces at the ends of lines and empty lines at the end."""
    min_chars: int = Field(default=1, ge=1)
    """Leave out shorter documents."""
    max_chars: int | None = Field(default=None, ge=1)
    """Leave out longer documents."""
    languages: list[str] = Field(default_factory=list)
    """Leave out documents in other languages than these, by their ISO 639-1 codes; default: any language."""
    language_probability: float = Field(default=0.65, ge=0, le=1)
    """How sure the language must be."""
    quality: list[Literal["gopher", "repetition", "c4", "fineweb"]] = Field(default_factory=list)
    """Leave out poor pages by rules made for English web text; running text only. Try it with `--preview` first."""
    private: PrivacyConfig = PrivacyConfig()
    """Private data; by default it is kept, for what is replaced changes what is learnt."""
    duplicates: bool = True
    """Leave out documents whose cleaned content is that of an earlier one."""
    near_duplicates: Literal["off", "text", "all"] = "text"
    """Leave out documents that are nearly an earlier one: running text only, or all. Unless it is off, no document of
    any kind is in one split while one that is nearly the same stands before it in another."""
    near_threshold: float = Field(default=0.63, ge=0.5, le=1)
    """How much of their runs of five words documents share that are nearly the same (the Jaccard similarity)."""
    rejected_samples: int = Field(default=20, ge=0)
    """How many rejected documents of each reason are kept in the folder `rejected` beside the shards."""

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError("'max_chars' is less than 'min_chars'")
        return self


class DataConfig(Section):
    """How the corpus becomes shards."""

    sources: list[SourceConfig] = Field(min_length=1)
    folder: PathValue | None = None
    """Where the shards go; default: `shards` in the run's folder."""
    tokenizer: TokenizerConfig | None = None
    """Default: the tokenizer of `model.path`."""
    chat_template: str | None = None
    """'plain', which ends turns with the tokenizer's own end token, 'chatml', which needs `<|im_start|>` and
    `<|im_end|>`, or the path of a Jinja file; default: the tokenizer's own."""
    train_on: Literal["all", "last"] = "all"
    """Of a conversation, which answers are trained: all, or the last. What a row says of a turn (`weight`, `train`,
    `loss`, `mask`) goes before it."""
    engine: Literal["auto", "gigatoken", "tokenizers"] = "auto"
    """What turns text into ids. auto: gigatoken from 4 MiB on, where it is installed and proves itself."""
    row_tokens: int = Field(default=1024, ge=16, multiple_of=8)
    """Tokens in a row: the model's sequence length."""
    packing: Literal["auto", "concat", "best_fit"] = "auto"
    """concat: running text, documents cut where a row ends. best_fit: no document cut unless longer than a row."""
    cleaning: CleaningConfig = CleaningConfig()
    """What is mended in the texts, and which documents are left out."""
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of documents held out, chosen by each document's own hash."""
    validation: Literal["auto", "documents", "passages"] = "auto"
    """passages: of each long text a stretch of about that share, for books by the dozen. auto: passages where there
    are fewer than 200 texts, and else documents; at least one of ten or more."""
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of documents held out for a test at the very end; chosen likewise, from those not in validation."""
    shard_rows: int = Field(default=16_384, gt=0)
    slice_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Bytes of source that one task reads."""
    executor: Literal["auto", "local", "ray"] = "auto"
    """auto: local processes for small corpora, Ray from 256 MB."""
    workers: int | None = Field(default=None, gt=0)
    """Tasks at a time; default: one for each CPU."""

    @model_validator(mode="after")
    def check_fractions(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("'validation_fraction' and 'test_fraction' leave nothing to train on")
        return self
