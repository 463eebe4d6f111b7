"""Survey a corpus: read, clean and encode the first records of some files of each source, and estimate the whole."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.errors import DataError
from cluster.machine import cpu_count
from cluster.progress import amount_of, duration
from cluster.wording import count_of
from data_prep.clean.cleaning import check_languages
from data_prep.config import CleaningConfig, DataConfig, SourceConfig
from data_prep.encode.backend_parity import choose_backend
from data_prep.encode.encoded_slices import EncodedSlice, encode_parts
from data_prep.encode.encoding import Encoder
from data_prep.encode.tokenizer import encoder_spec, open_data_tokenizer, sample, train_tokenizer, with_template
from data_prep.fetch.source_files import Named, files_of
from data_prep.fetch.sources import SHAPES, Corpus, CorpusFile, notes_of, parts_of
from data_prep.files.formats import suffix_of
from data_prep.files.other_formats import advice_on
from data_prep.preview.file_samples import (
    RECORDS,
    SAMPLE_BYTES,
    beginning,
    is_cut_short,
    opened_here,
    sampled_file,
    scales_of,
    spread,
)
from data_prep.rows.record_shapes import name_list

START_S = 2.0  # before the first document is encoded


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated documents and tokens, and the seconds that one process takes for them."""

    documents: float = 0.0
    tokens: float = 0.0
    trained: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def times(self, scale: float) -> Estimate:
        return Estimate(*(value * scale for value in astuple(self)))


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Results of the first records of a source's sampled files, and estimates for these files as a whole, by suffix."""

    records: int
    kept: int
    tokens: int
    trained: int
    rejected: Counter[str]
    whole: Mapping[str, Estimate]
    lengths: npt.NDArray[np.int64]
    """Tokens of each sequence."""


@dataclass(frozen=True, kw_only=True)
class SurveyedSource:
    """One source: its files, the sampled ones, how many chosen files only `prepare` opens, and remarks for the user."""

    label: str
    files: Sequence[Named]
    passed_over: Mapping[str, int]
    sampled: Sequence[CorpusFile]
    unopened: int
    notes: Sequence[str]

    @property
    def bytes(self) -> int:
        return sum(location.stat().st_size for _, location in self.files)


def survey(
    config: DataConfig,
    model_path: str | None,
    *,
    may_add_tokens: bool = False,
    estimated: Callable[[Estimate], None] | None = None,
) -> Iterator[str]:
    """Yield lines that describe every local source, and an estimate of what `prepare` will make of them all.

    `estimated` is called with that estimate. Nothing is written or fetched. Raises DataError for a source without
    usable records, and whatever `prepare` would raise for these records.
    """
    check_languages(config.cleaning.languages)
    with tempfile.TemporaryDirectory() as folder:
        yield from surveyed(config, model_path, Path(folder), may_add_tokens=may_add_tokens, estimated=estimated)


def surveyed(
    config: DataConfig,
    model_path: str | None,
    folder: Path,
    *,
    may_add_tokens: bool,
    estimated: Callable[[Estimate], None] | None,
) -> Iterator[str]:
    """Yield the lines of `survey`; small archives are unpacked in `folder`."""
    here = [source for source in config.sources if source.address is None]
    sources = [looked_at(source, folder) for source in here]
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
        whole = sum((of_all(source, found[source.label].whole) for source in sources), Estimate())
        if estimated is not None:
            estimated(whole)
        yield estimate(config, whole)


def check_reachable(source: SourceConfig) -> None:
    """Raise DataError if a source is a dataset that the Hub does not provide."""
    if source.dataset is not None:
        from data_prep.fetch.remote_listing import require_dataset  # httpx takes 0.2 s to import

        require_dataset(source)


def looked_at(source: SourceConfig, folder: Path) -> SurveyedSource:
    """Return a source with some of its files inspected. Raises DataError if it has nothing to read."""
    listed, passed_over = files_of(source, {})
    named = opened_here(source, listed, folder, passed_over)
    if not named:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(passed_over.items())) or "no member"
        raise DataError(
            f"data.sources: {source.label}: nothing to read in its archives ({reasons}); name files that can be read"
        )
    sampled = []
    chosen = spread(named)
    for name, location in chosen:
        file = sampled_file(source, name, location)
        if file is not None:
            sampled.append(file)
    notes = notes_of(Corpus(files=sampled, passed_over={}), source.label)
    return SurveyedSource(
        label=source.label,
        files=named,
        passed_over=dict(passed_over),
        sampled=sampled,
        unopened=len(chosen) - len(sampled),
        notes=notes,
    )


def encoder_for(
    config: DataConfig, model_path: str | None, files: list[CorpusFile], size: int, *, may_add_tokens: bool
) -> Encoder:
    """Return the encoder for the corpus; a tokenizer that is to be trained is trained on the sample."""
    corpus = Corpus(files=files, passed_over={file.info.source: {} for file in files})
    wanted = config.tokenizer.train if config.tokenizer is not None else None
    if wanted is None:
        tokenizer = open_data_tokenizer(config, model_path)
    else:
        tokenizer = train_tokenizer(sample(corpus, SAMPLE_BYTES), wanted.vocab_size)
    loaded = with_template(tokenizer, config, is_text=corpus.is_text, may_add_tokens=may_add_tokens)
    spec = encoder_spec(loaded.tokenizer, corpus)
    choice = choose_backend(config.engine, spec.rules, spec.control_tokens, size, is_text=corpus.is_text)
    return Encoder(replace(spec, engine=choice.engine))


def look(source: SurveyedSource, encoder: Encoder, cleaning: CleaningConfig) -> Looked:
    """Read, clean and encode the first records of the sampled files."""
    encoder.encode_texts([b"the first text takes longer"])
    found: list[EncodedSlice] = []
    whole: dict[str, Estimate] = defaultdict(Estimate)
    for file in source.sampled:
        with tempfile.TemporaryDirectory() as folder:
            piece = beginning(file, Path(folder))
            (all_of_it,) = parts_of(0, piece, max(piece.info.bytes, 1))
            part = replace(all_of_it, end=SAMPLE_BYTES) if is_cut_short(piece) else all_of_it
            began = time.perf_counter()
            encoded = encode_parts([part], encoder, cleaning, RECORDS)
            seconds = time.perf_counter() - began
            scales = scales_of(file, piece, encoded.records[0])
            whole[suffix_of(file.info.path)] += estimated(file, encoded, seconds, *scales)
            found.append(encoded)
    rejected: Counter[str] = Counter()
    for encoded in found:
        rejected.update(encoded.rejected[0])
    return Looked(
        records=sum(encoded.records[0] for encoded in found),
        kept=sum(len(encoded.part) for encoded in found),
        tokens=sum(len(encoded.ids) for encoded in found),
        trained=sum(int(encoded.trained.sum()) for encoded in found),
        rejected=rejected,
        whole=whole,
        lengths=np.concatenate([np.zeros(0, np.int64), *(np.diff(encoded.first) for encoded in found)]),
    )


def estimated(file: CorpusFile, encoded: EncodedSlice, seconds: float, documents: float, texts: float) -> Estimate:
    """Estimate a whole file from the encoded part, which is so many times smaller; a file without rows is one document,
    however long.
    """
    kept = len(encoded.part)
    rest = Estimate(0.0, len(encoded.ids), int(encoded.trained.sum()), seconds).times(texts)
    return replace(rest, documents=kept * documents if file.columns.format.has_rows else kept)


def described(source: SurveyedSource) -> Iterator[str]:
    """Yield lines on a source's files and how they are read."""
    kinds = Counter("".join(Path(name).suffixes[-2:]) for name, _ in source.files)
    names = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common(4))
    files, size = count_of(len(source.files), "file"), amount_of(source.bytes, "bytes")
    yield f"source         {source.label}: {files} ({names}), {size}"
    if source.passed_over:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in source.passed_over.items())
        yield f"               skipped, of unknown format or other splits: {listed}{advice_on(source.passed_over)}"
    made = Counter(
        SHAPES[file.columns.shape] + (f" from {name_list(file.columns.names)}" if file.columns.names else "")
        for file in source.sampled
    )
    for line in (*made, *source.notes):
        yield f"               {line}"
    if source.unopened:
        none = "" if source.sampled else ", so it is not known yet whether this source can be used"
        yield f"               large archives and pages are opened only by `prepare`{none}"


def told(looked: Looked) -> Iterator[str]:
    """Yield lines on the sample of a source."""
    if looked.records:
        trained = f"; {looked.trained / looked.tokens:.0%} of their tokens are trained" if looked.tokens else ""
        left_out = "".join(f"; {count} {reason}" for reason, count in sorted(looked.rejected.items()))
        sampled = count_of(looked.records, "sampled record")
        yield f"               of {sampled}, {looked.kept:,} can be used{left_out}{trained}"


def check_usable(source: SurveyedSource, looked: Looked) -> None:
    """Raise DataError if none of the sampled records can be used."""
    if source.sampled and looked.kept == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(looked.rejected.items())) or "no record"
        raise DataError(
            f"data.sources: {source.label}: nothing to train on in {count_of(looked.records, 'sampled record')} "
            f"({reasons}); fix the files, or check what data.cleaning rejects"
        )


def estimate(config: DataConfig, whole: Estimate) -> str:
    """Return the estimate for preparing all sources: documents, tokens, rows and time on this machine."""
    rows = math.ceil(whole.tokens / config.row_tokens)
    took = duration(START_S + whole.seconds / (config.workers or cpu_count()))
    said = f"{rounded(whole.documents)} documents, {rounded(whole.tokens)} tokens ({rounded(whole.trained)} trained)"
    weighted = any(source.weight is not None or source.epochs != 1 for source in config.sources)
    before = ", before weights and epochs" if weighted else ""
    said += f", {rounded(rows)} rows of {config.row_tokens}{before}"
    return f"estimate       about {said}; prepared here in about {took}"


def of_all(source: SurveyedSource, sampled: Mapping[str, Estimate]) -> Estimate:
    """Estimate all files of a source: each suffix from its sampled files, other suffixes from all of them.

    A file that is a single document counts as one, whatever its size.
    """
    has, seen, files, looked = (Counter[str]() for _ in range(4))
    for name, location in source.files:
        has[suffix_of(name)] += location.stat().st_size
        files[suffix_of(name)] += 1
    for file in source.sampled:
        seen[suffix_of(file.info.path)] += file.info.bytes
        looked[suffix_of(file.info.path)] += 1
    one_each = {suffix_of(file.info.path) for file in source.sampled if not file.columns.format.has_many}
    whole = Estimate()
    for suffix, estimate in sampled.items():
        every = estimate.times(has[suffix] / seen[suffix] if seen[suffix] else 0.0)
        if suffix in one_each:
            every = replace(every, documents=estimate.documents * files[suffix] / looked[suffix])
        whole += every
    known = sum(has[suffix] for suffix in sampled)
    return whole.times(has.total() / known if known else 0.0)


def rounded(value: float) -> str:
    """Format a number rounded to two significant digits."""
    if value < 100:
        return f"{value:.0f}"
    digits = len(str(int(value))) - 2
    return f"{round(value / 10**digits) * 10**digits:,}"
