"""The `data:` section: where documents come from, and how they become rows."""

from __future__ import annotations

import codecs
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cluster.config_loading import PathValue, Section
from data_prep.files.formats import FormatName
from data_prep.rows.fields import Fields
from data_prep.rows.roles import Role


class SourceConfig(Section):
    """One source of documents: a local path, an address, or a dataset of the Hugging Face Hub."""

    path: str | None = None
    """A file, a folder (with all files below it) or a glob; relative to `relative_to`."""
    relative_to: PathValue | None = None
    """Default: the current folder. A run stores it in its config.yaml, so that it works from any folder."""
    url: str | None = None
    """An address, fetched once into the shards' cache: https:// of one file; or hf://, s3://, gs:// and any other
    scheme of fsspec, of a file, a folder or a glob."""
    dataset: str | None = None
    """The id of a Hub dataset: OWNER/NAME or OWNER/NAME@REVISION."""
    split: str | None = None
    """Which split's files of the dataset are read, if their names contain splits; default: train. With a `path`: of a
    local copy of a dataset, or of any files named after splits."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """The fetched file's expected hash."""
    size_bytes: int | None = Field(default=None, gt=0)
    """The fetched file's expected size."""
    name: str | None = None
    """The source's name in tables and in `inspect`; default: the path, URL or dataset."""
    license: str | None = Field(default=None, min_length=1)
    """The licence of its documents, which `push` writes into the model card: cc-by-4.0, proprietary ...; default:
    unknown. Changes no shard."""
    fields: Fields = Fields()
    """Which of the rows' columns holds what, if their names are not known ones (docs/rows.md)."""
    system: str | None = Field(default=None, min_length=1)
    """The system turn of every pair or conversation that has none of its own; a text, not a column."""
    roles: dict[str, Role] = Field(default_factory=dict)
    """The roles of speakers whose names are not known ones: {speaker1: user, speaker2: assistant}."""
    markers: dict[Literal["system", "user", "assistant", "tool", "ignore"], str | list[str]] = Field(
        default_factory=dict
    )
    """The beginnings of turns, in texts that contain a conversation: {user: "\\nQ:", assistant: "\\nA:"}. The
    markers under `ignore` are removed."""
    paths: Literal["best", "all"] | None = None
    """Which paths of a tree of messages become conversations: that of the best-ranked answers (default), or all."""
    html: Literal["article", "plain"] = "article"
    """article: a web page's article without menus and comments; plain: all of its text."""
    format: FormatName | None = None
    """The format of the source's files, whatever their suffix; compression and archives still go by the suffix."""
    encoding: str | None = None
    """The encoding of text files that are not UTF-8 and have no byte order mark: latin-1, cp1252, gb18030 ..."""
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    """The separator between the cells of a CSV or TSV file; default: detected from its lines."""
    columns: list[str] | None = Field(default=None, min_length=1)
    """The names of all columns, for CSV or TSV files without a header."""

    epochs: float = Field(default=1.0, gt=0)
    """How often its documents are trained on in one epoch of the whole corpus; with weights, the maximum."""
    weight: float | None = Field(default=None, gt=0)
    """Its share of the trained tokens, relative to the other sources' weights; default: its natural share."""

    @model_validator(mode="after")
    def check_rows(self) -> Self:
        if self.paths is not None and self.fields.parent_id is None:
            raise ValueError(
                "'paths' is for trees of messages: set fields.parent_id to the column of each message's parent"
            )
        if self.markers and not self.fields.messages:
            raise ValueError("'markers' need the column with the texts: write `fields: {messages: COLUMN}`")
        if self.markers and not {"user", "assistant"} <= set(self.markers):
            raise ValueError("'markers' need both 'user' and 'assistant'")
        if self.fields.text and (self.system or self.roles):
            raise ValueError("running text ('fields.text') has no turns: remove 'system' and 'roles'")
        return self

    @model_validator(mode="after")
    def check_one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.url, self.dataset)) != 1:
            raise ValueError("give exactly one of 'path', 'url' and 'dataset'")
        if self.url is None and (self.sha256 or self.size_bytes):
            raise ValueError("'sha256' and 'size_bytes' are for a 'url' only")
        if self.url is not None and self.split is not None:
            raise ValueError("'split' is for a 'dataset' or a 'path'; for a 'url', select the files with a glob")
        return self

    @field_validator("encoding")
    @classmethod
    def check_encoding(cls, value: str | None) -> str | None:
        """Return Python's canonical name of an encoding."""
        if value is None:
            return None
        try:
            "x".encode(value)
            codecs.getincrementaldecoder(value)
        except (LookupError, UnicodeError):
            raise ValueError(
                f"{value!r} is not a known encoding; expected one such as latin-1, cp1252, utf-16, gb18030, shift_jis"
            ) from None
        name = codecs.lookup(value).name
        return "utf-8" if name == "utf-8-sig" else name

    @model_validator(mode="after")
    def check_columns(self) -> Self:
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError("'columns' contains a name twice")
        if self.format not in (None, "csv", "tsv") and (self.columns or self.separator):
            raise ValueError(f"'columns' and 'separator' are for CSV and TSV, and 'format' is {self.format}")
        return self

    @property
    def address(self) -> str | None:
        """The address that the source's files are fetched from; None for local files."""
        return self.url if self.dataset is None else f"hf://datasets/{self.dataset}"

    @property
    def label(self) -> str:
        return self.name or self.path or self.url or self.dataset or ""


class TrainTokenizer(Section):
    """Train a byte-level BPE on the corpus itself."""

    vocab_size: int = Field(ge=512, le=262_144)
    """Number of tokens."""


class TokenizerConfig(Section):
    """The tokenizer, if it is not the model's."""

    path: str | None = None
    """A Hugging Face folder or Hub id."""
    train: TrainTokenizer | None = None

    @model_validator(mode="after")
    def check_one_origin(self) -> Self:
        if (self.path is None) == (self.train is None):
            raise ValueError("give exactly one of 'path' and 'train'")
        return self


PrivateData = Literal["keep", "replace", "drop"]


class PrivacyConfig(Section):
    """What to do with private data in a text: keep it, replace it by its kind in brackets, or drop the document."""

    email: PrivateData = "keep"
    """E-mail addresses."""
    phone: PrivateData = "keep"
    """Telephone numbers: international with their plus, North American with their separators."""
    ip: PrivateData = "keep"
    """Public IP addresses, version 4 and 6. Version numbers with four parts look the same."""
    card: PrivateData = "keep"
    """Payment card numbers, by issuer and check digit."""
    iban: PrivateData = "keep"
    """Bank account numbers, by country and check digits."""


class CleaningConfig(Section):
    """How texts are cleaned, and which documents are rejected. Every step can be switched off."""

    repair: bool = True
    """Repair UTF-8 that was decoded as Windows-1252 or Latin-1 (`cafÃ©`), with ftfy, and Windows-1252 decoded as
    Latin-1."""
    control_characters: bool = True
    """Remove control characters except tabs and the ends of lines and pages, which become `\\n`."""
    unicode: Literal["nfc", "nfkc", "off"] = "nfc"
    """The Unicode normal form. nfkc also replaces ligatures and full-width letters, which loses information."""
    whitespace: bool = True
    """Running text only: remove trailing spaces of lines, and empty lines at the end."""
    front_matter: bool = True
    """Remove the front matter of Markdown files: the YAML or TOML with keys before the text."""
    min_chars: int = Field(default=1, ge=1)
    """Reject shorter documents."""
    max_chars: int | None = Field(default=None, ge=1)
    """Reject longer documents."""
    languages: list[str] = Field(default_factory=list)
    """Reject documents in languages other than these ISO 639-1 codes; default: accept any language."""
    language_probability: float = Field(default=0.65, ge=0, le=1)
    """The minimum probability of the detected language."""
    quality: list[Literal["gopher", "repetition", "c4", "fineweb"]] = Field(default_factory=list)
    """Reject low-quality pages by rules made for English web text; running text only. Try it with `--preview` first."""
    private: PrivacyConfig = PrivacyConfig()
    """Private data; kept by default, because replacing it changes what the model learns."""
    duplicates: bool = True
    """Reject documents whose cleaned content equals an earlier one's."""
    near_duplicates: Literal["off", "text", "all"] = "text"
    """Reject documents that are nearly equal to an earlier one: running text only, or all. Unless it is off, documents
    of any shape that are nearly equal to an earlier one in another split are rejected too."""
    near_threshold: float = Field(default=0.63, ge=0.5, le=1)
    """The share of five-word runs (Jaccard similarity) from which two documents are nearly equal."""
    rejected_samples: int = Field(default=20, ge=0)
    """How many rejected documents to keep per reason, in the folder `rejected` next to the shards."""

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError("'max_chars' is less than 'min_chars'")
        return self


class DataConfig(Section):
    """How the corpus is turned into shards."""

    sources: list[SourceConfig] = Field(min_length=1)
    folder: PathValue | None = None
    """The folder for the shards; default: `shards` in the run's folder."""
    tokenizer: TokenizerConfig | None = None
    """Default: the tokenizer of `model.path`."""
    chat_template: str | None = None
    """'plain', which ends turns with the tokenizer's own end token, 'chatml', which needs `<|im_start|>` and
    `<|im_end|>`, or the path of a Jinja file; default: the tokenizer's own."""
    train_on: Literal["all", "last"] = "all"
    """Which answers of a conversation are trained: all, or the last. A row's own flags (`weight`, `train`, `loss`,
    `mask`) take precedence."""
    engine: Literal["auto", "gigatoken", "tokenizers"] = "auto"
    """The tokenizer backend. auto: gigatoken from 4 MiB of text, if it is installed and passes the parity check."""
    row_tokens: int = Field(default=1024, ge=16, multiple_of=8)
    """Tokens in a row: the model's sequence length."""
    packing: Literal["auto", "concat", "best_fit"] = "auto"
    """concat: running text, documents are cut where a row ends. best_fit: only documents longer than a row are cut."""
    cleaning: CleaningConfig = CleaningConfig()
    """How texts are cleaned, and which documents are rejected."""
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of documents held out for validation, chosen by each document's hash."""
    validation: Literal["auto", "documents", "passages"] = "auto"
    """passages: hold out a span of about that share of each long text, for corpora of few books. auto: passages if
    there are fewer than 200 texts, else documents; at least one of ten or more."""
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of documents held out for a final test; chosen likewise, from those not in validation."""
    shard_rows: int = Field(default=16_384, gt=0)
    """Rows in one shard."""
    slice_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Source bytes that one task reads."""
    executor: Literal["auto", "local", "ray"] = "auto"
    """auto: local processes for small corpora, Ray from 256 MB."""
    workers: int | None = Field(default=None, gt=0)
    """Tasks at a time; default: one per CPU."""

    @model_validator(mode="after")
    def check_fractions(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("'validation_fraction' and 'test_fraction' leave nothing to train on")
        return self
