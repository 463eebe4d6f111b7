"""What a corpus is, told from the first records of some files of each source, read and encoded as all will be."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.environment import cpu_count
from cluster.errors import DataError
from data_prep.byte_ranges import HashedFile
from data_prep.cleaning import Cleaner
from data_prep.config import CleaningConfig, DataConfig, SourceConfig
from data_prep.documents import raw_records
from data_prep.encoding import Encoder
from data_prep.formats import Format, format_of
from data_prep.progress import amount_of, duration
from data_prep.proof import choose_engine
from data_prep.shapes import shortened
from data_prep.shards import SourceFile
from data_prep.slices import EncodedSlice, encode_parts
from data_prep.sources import SHAPES, Corpus, CorpusFile, FoundFile, Named, files_of, look_into, notes_of, parts_of
from data_prep.streams import ObjectionError, open_stream
from data_prep.tokenizer import encoder_spec, open_data_tokenizer, sample, train_tokenizer, with_template

RECORDS = 200  # of a file, at most
SAMPLE_BYTES = 2**20  # of a file, at most
FILES = 5  # of a source, spread over all
PAGE_BYTES = 8 * 2**20  # larger pages are not opened here
START_S = 2.0  # before the first document is encoded


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What the sampled files of one source gave: `bytes` of them were read, on the disk's scale."""

    bytes: float
    seconds: float
    records: int
    kept: int
    tokens: int
    trained: int
    rejected: Counter[str]


@dataclass(frozen=True, kw_only=True)
class SurveyedSource:
    """One source: its files, those that were looked into, and what a person is to know of them."""

    label: str
    files: Sequence[Named]
    passed_over: Mapping[str, int]
    sampled: Sequence[CorpusFile]
    notes: Sequence[str]

    @property
    def bytes(self) -> int:
        return sum(location.stat().st_size for _, location in self.files)


def survey(config: DataConfig, model_path: str | None, *, may_add_tokens: bool = False) -> Iterator[str]:
    """Yield lines about every source that lies here, and what preparing them all will give, by a sample.

    Nothing is written, nothing is fetched. Raises DataError for a source of which nothing can be used, and whatever
    `prepare` would raise for these records.
    """
    Cleaner(config.cleaning)
    here = [source for source in config.sources if source.address is None]
    sources = [looked_at(source, config) for source in here]
    for source in config.sources:
        if source.address is not None:
            check_reachable(source)
            yield f"source         {source.label}: to be fetched"
    files = [file for source in sources for file in source.sampled]
    if not files:
        for one in sources:
            yield from described(one)
        return
    size = sum(source.bytes for source in sources)
    if sum(file.info.bytes for file in files) == 0:
        raise DataError("data.sources: the corpus is empty: its files hold 0 bytes; name files with documents")
    encoder = encoder_for(config, model_path, files, size, may_add_tokens=may_add_tokens)
    found = {}
    for one in sources:
        yield from described(one)
        found[one.label] = sampled = look(one, encoder, config.cleaning)
        yield from told(sampled)
        check_usable(one, sampled)
    if len(here) == len(config.sources):
        yield estimate(config, sources, found)


def check_reachable(source: SourceConfig) -> None:
    """Raise DataError if a source is a dataset that the hub does not give."""
    if source.dataset is not None:
        from data_prep.listing import require_dataset  # httpx takes 0.2 s to import

        require_dataset(source)


def looked_at(source: SourceConfig, config: DataConfig) -> SurveyedSource:
    """Return a source with some of its files looked into, and the columns that are not used. Raises DataError."""
    named, passed_over = files_of(source, {})
    sampled = []
    for name, location in spread(named):
        file = sampled_file(source, name, location)
        if file is not None:
            sampled.append(file)
    notes = notes_of(Corpus(files=sampled, passed_over={}), source.label)
    return SurveyedSource(label=source.label, files=named, passed_over=dict(passed_over), sampled=sampled, notes=notes)


def spread(named: Sequence[Named]) -> list[Named]:
    """Return up to FILES files, from the first to the last."""
    places = np.linspace(0, len(named) - 1, min(FILES, len(named))).round().astype(int)
    return [named[place] for place in dict.fromkeys(places.tolist())]


def sampled_file(source: SourceConfig, name: str, location: Path) -> CorpusFile | None:
    """Return a file as a member of the corpus, but for its hash; None if only preparing can open it."""
    form = format_of(location.name, source.format) or Format()
    size = location.stat().st_size
    is_page = not form.has_rows and form.kind != "text"
    if form.is_archive or (is_page and size > PAGE_BYTES):
        return None
    columns = look_into(FoundFile(source=source, name=name, location=location), size)
    info = SourceFile(source=source.label, path=name, bytes=size, sha256="")
    return CorpusFile(info=info, location=location.resolve(), columns=columns, hashed=HashedFile("", size))


def first_records(file: CorpusFile) -> Iterator[Any]:
    return itertools.islice(raw_records(file.location, file.columns.format, 0, file.info.bytes), RECORDS)


def encoder_for(
    config: DataConfig, model_path: str | None, files: list[CorpusFile], size: int, *, may_add_tokens: bool
) -> Encoder:
    """Return what the corpus will be encoded with; a tokenizer that is trained first is trained on the sample."""
    corpus = Corpus(files=files, passed_over={file.info.source: {} for file in files})
    wanted = config.tokenizer.train if config.tokenizer is not None else None
    if wanted is None:
        tokenizer = open_data_tokenizer(config, model_path)
    else:
        tokenizer = train_tokenizer(sample(corpus, SAMPLE_BYTES), wanted.vocab_size)
    loaded = with_template(tokenizer, config, is_text=corpus.is_text, may_add_tokens=may_add_tokens)
    spec = encoder_spec(loaded.tokenizer, corpus)
    choice = choose_engine(config.engine, spec.rules, spec.control_tokens, size, is_text=corpus.is_text)
    return Encoder(replace(spec, engine=choice.engine))


def look(source: SurveyedSource, encoder: Encoder, cleaning: CleaningConfig) -> Looked:
    """Read, clean and encode the first records of the sampled files."""
    encoder.encode_texts([b"the first text takes longer"])
    found: list[tuple[CorpusFile, EncodedSlice, float, float]] = []
    for file in source.sampled:
        with tempfile.TemporaryDirectory() as folder:
            piece = beginning(file, Path(folder))
            (whole,) = parts_of(0, piece, max(piece.info.bytes, 1))
            part = replace(whole, end=SAMPLE_BYTES) if is_cut_short(piece) else whole
            began = time.perf_counter()
            encoded = encode_parts([part], encoder, cleaning, RECORDS)
            found.append((file, encoded, read_bytes(piece, encoded.records[0]), time.perf_counter() - began))
    rejected: Counter[str] = Counter()
    for _, encoded, _, _ in found:
        rejected.update(encoded.rejected[0])
    return Looked(
        bytes=sum(size for _, _, size, _ in found),
        seconds=sum(seconds for _, _, _, seconds in found),
        records=sum(encoded.records[0] for _, encoded, _, _ in found),
        kept=sum(len(encoded.part) for _, encoded, _, _ in found),
        tokens=sum(len(encoded.ids) for _, encoded, _, _ in found),
        trained=sum(int(encoded.trained.sum()) for _, encoded, _, _ in found),
        rejected=rejected,
    )


def beginning(file: CorpusFile, folder: Path) -> CorpusFile:
    """Return a file, or of a long plain text its first bytes as a file of their own."""
    if file.columns.format.kind != "text":
        return file
    with open_stream(file.location, file.columns.format.compression) as stream:
        try:
            data = stream.read(SAMPLE_BYTES + 1)
        except ObjectionError:  # which reading it will say again
            return file
    if len(data) <= SAMPLE_BYTES:
        return file
    piece = folder / "beginning.txt"
    piece.write_bytes(data.decode(errors="ignore").encode() if is_utf8(data) else data[:SAMPLE_BYTES])
    columns = replace(file.columns, format=replace(file.columns.format, compression=None))
    info = replace(file.info, bytes=piece.stat().st_size)
    return CorpusFile(info=info, location=piece, columns=columns, hashed=file.hashed)


def is_cut_short(file: CorpusFile) -> bool:
    """Tell whether only the lines are read that begin in a file's first bytes."""
    form = file.columns.format
    return form.kind == "jsonl" and form.may_be_cut and file.info.bytes > SAMPLE_BYTES


def is_utf8(data: bytes) -> bool:
    """Tell whether bytes are UTF-8 but for a character that their end may cut."""
    try:
        data[: len(data) - 4].decode()
    except UnicodeDecodeError as error:
        return error.end >= len(data) - 4
    return True


def read_bytes(file: CorpusFile, records: int) -> float:
    """Return how many bytes of a file on the disk its first records are."""
    form = file.columns.format
    if not form.has_rows or (records < RECORDS and not is_cut_short(file)):
        return file.info.bytes
    if form.kind == "parquet":
        return file.info.bytes * records / max(records, int(pq.read_metadata(file.location).num_rows))
    sizes = [raw_size(raw) for raw in itertools.islice(first_records(file), records)]
    texts = b"\n".join(raw for raw in first_records(file) if isinstance(raw, bytes))[:SAMPLE_BYTES]
    shrinks = len(texts) / len(zlib.compress(texts)) if form.compression and texts else 1.0
    return min(sum(sizes) / shrinks, file.info.bytes)


def raw_size(raw: Any) -> int:
    if isinstance(raw, bytes | str):
        return len(raw) + 1
    return 0 if isinstance(raw, ObjectionError) else sum(len(str(value)) + 1 for value in raw.values())


def described(source: SurveyedSource) -> Iterator[str]:
    """Yield what a source's files are and what is made of them."""
    kinds = Counter("".join(Path(name).suffixes[-2:]) for name, _ in source.files)
    names = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common(4))
    yield f"source         {source.label}: {len(source.files):,} files ({names}), {amount_of(source.bytes, 'bytes')}"
    if source.passed_over:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in source.passed_over.items())
        yield f"               passed over, for nothing here reads them: {listed}"
    made = Counter(
        SHAPES[file.columns.shape] + (f" from {shortened(file.columns.names)}" if file.columns.names else "")
        for file in source.sampled
    )
    for line in (*made, *source.notes):
        yield f"               {line}"
    if len(source.sampled) < min(FILES, len(source.files)):
        yield "               archives and large pages are opened when they are prepared"


def told(looked: Looked) -> Iterator[str]:
    """Yield what the sample of a source gave."""
    if looked.records:
        share = looked.trained / looked.tokens if looked.tokens else 0.0
        left_out = "".join(f"; {count} {reason}" for reason, count in sorted(looked.rejected.items()))
        yield (
            f"               of {looked.records:,} records looked at {looked.kept:,} can be used{left_out}; "
            f"{share:.0%} of their tokens are trained"
        )


def check_usable(source: SurveyedSource, looked: Looked) -> None:
    """Raise DataError if of all records that were looked at none can be used."""
    if source.sampled and looked.kept == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(looked.rejected.items())) or "no record"
        raise DataError(
            f"data.sources: {source.label}: nothing to train on in the {looked.records} records that were looked at "
            f"({reasons}); mend the files, or see what data.cleaning leaves out"
        )


def estimate(config: DataConfig, sources: Sequence[SurveyedSource], found: Mapping[str, Looked]) -> str:
    """Say about how much preparing all sources gives, and how long it takes here."""
    documents = tokens = trained = seconds = 0.0
    for source in sources:
        looked = found[source.label]
        scale = source.bytes / looked.bytes if looked.bytes else 0.0
        documents += looked.kept * scale
        tokens += looked.tokens * scale
        trained += looked.trained * scale
        seconds += looked.seconds * scale
    rows = math.ceil(tokens / config.row_tokens)
    took = duration(START_S + seconds / (config.workers or cpu_count()))
    return (
        f"estimate       about {rounded(documents)} documents, {rounded(tokens)} tokens ({rounded(trained)} trained), "
        f"{rounded(rows)} rows of {config.row_tokens}; prepared here in about {took}"
    )


def rounded(value: float) -> str:
    """Return a number with two digits that mean something."""
    if value < 100:
        return f"{value:.0f}"
    digits = len(str(int(value))) - 2
    return f"{round(value / 10**digits) * 10**digits:,}"
