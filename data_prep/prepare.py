"""Corpus to shards: fetch, encode slice by slice, plan the whole, write the rows, seal with the manifest."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import digest_of, fsync_path, full_disk_named
from cluster.disk.lock_holder import Holder
from cluster.disk.locks import LockFile, hold_lock
from cluster.errors import DataError
from data_prep.clean.cleaning import CLEANING_VERSION, Cleaner
from data_prep.clean.near_duplicates import SIGNATURE_VERSION
from data_prep.clean.rejected_samples import FOLDER as REJECTED
from data_prep.clean.rejected_samples import write_rejected
from data_prep.config import CleaningConfig, DataConfig
from data_prep.encode.backend_parity import BackendMismatchError, choose_backend, refused
from data_prep.encode.conversations import read_template
from data_prep.encode.encoded_slices import (
    SLICE_VERSION,
    SliceFiles,
    SliceTask,
    encode_slice,
    read_slice,
    slice_digests,
)
from data_prep.encode.encoding import EncoderSpec, write_spec
from data_prep.encode.tokenizer import (
    DataTokenizer,
    digest_of_rules,
    encoder_spec,
    load_tokenizer,
    save_tokenizer,
    tokenizer_origin,
)
from data_prep.executors import Executor, Workers
from data_prep.fetch.provenance import document_place
from data_prep.fetch.sources import Corpus, Slice, cut_slices, find_corpus, notes_of, read_as
from data_prep.pack.packing import PACKING_VERSION
from data_prep.pack.row_assembly import RowFormat, ShardTask, write_rows
from data_prep.pack.row_plan import PackingPlan, make_plan, packing_method, shard_plans
from data_prep.progress import counted
from data_prep.select.held_out_passages import HELD_OUT_VERSION
from data_prep.select.ledger import count_tokens
from data_prep.select.long_documents import line_ends
from data_prep.shards import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Manifest,
    ShardInfo,
    check_size,
    read_manifest,
    template_digest,
)
from data_prep.shards.tokenizer_files import vocabulary_size
from data_prep.shards.writing import list_others, row_schema, write_manifest, write_split_files

log = logging.getLogger(__name__)

LOCK = "prepare.lock"
RAY_FROM_BYTES = 256 * 2**20  # below it, starting Ray takes longer than the work
EXCERPT_TOKENS = 128
PROCESSES_FROM_BYTES = 16 * 2**20  # likewise for processes; the tokenizer has threads of its own

MapSlices = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


def prepare(
    config: DataConfig, folder: Path, model_path: str | None, seed: int, *, may_add_tokens: bool = False
) -> Manifest:
    """Make `folder` prepared data and return its manifest; if it is already what `config` describes, do nothing.

    With `may_add_tokens`, the model gets embeddings for what the chat template needs beyond its tokenizer.

    The bytes depend on the documents, the settings and the seed, never on workers, executor or interruptions: slices
    that are finished are kept in `folder/work`. Until the new rows are planned, old data stays as it is.
    Raises ConfigError, DataError or ClusterError for what a person must mend: a full disk and another preparation at
    work in `folder` too.
    """
    folder = folder.resolve()
    Cleaner(config.cleaning)  # what is wrong in its settings shows before anything is fetched
    with full_disk_named(folder), hold_lock(LockFile(folder / LOCK, holder=Holder.here("shardline prepare"))):
        return prepare_alone(config, folder, model_path, seed, may_add_tokens=may_add_tokens)


def prepare_alone(
    config: DataConfig, folder: Path, model_path: str | None, seed: int, *, may_add_tokens: bool
) -> Manifest:
    """Do what `prepare` promises, once nobody else can write into the folder."""
    with Workers(config.workers) as workers:
        corpus = fetch_corpus(config, folder)
        digest = config_digest(config, corpus, model_path, seed, may_add_tokens=may_add_tokens)
        finished = finished_manifest(folder, digest)
        if finished is not None:
            log.info("already prepared: %s, %d rows in train", folder, finished.rows("train"))
            return finished
        map_slices = mapper(config, corpus, workers)
        loaded = load_tokenizer(config, model_path, corpus, folder / "work", may_add_tokens=may_add_tokens)
        tokenizer = loaded.tokenizer
        spec = encoder_spec(tokenizer, corpus, config.train_on)
        slices = cut_slices(corpus, config.slice_bytes)
        choice = choose_backend(config.engine, spec.rules, spec.control_tokens, corpus.bytes, is_text=corpus.is_text)
        spec = replace(spec, engine=choice.engine)
        try:
            paths = encode_slices(slices, corpus, spec, config.cleaning, folder / "work", map_slices)
        except BackendMismatchError as problem:  # one wrong id: none of its slices is used
            choice = refused(spec.engine, problem)
            spec = replace(spec, engine=choice.engine)
            paths = encode_slices(slices, corpus, spec, config.cleaning, folder / "work", map_slices)
        plan = make_plan(config, corpus, slices, SliceFiles(paths), seed, partial(line_ends, tokenizer))
        write_rejected(folder / REJECTED, rejected_lines(plan, corpus, paths, tokenizer))
        unseal(folder)
        splits = write_splits(config, folder, spec, plan, paths, map_slices)
    save_tokenizer(tokenizer, folder / "tokenizer")
    described = describe(config, corpus, loaded, plan, splits, digest)
    manifest = write_manifest(folder, replace(described, engine=choice.as_json(), others=list_others(folder)))
    trained_tokenizer = Path(tokenizer.name_or_path)  # it lies in work, if it was trained here
    remove_except(folder / "work", {*paths, encoder_file(folder / "work", spec), trained_tokenizer})
    return manifest


def fetch_corpus(config: DataConfig, folder: Path) -> Corpus:
    """Fetch what is not here yet, then list and hash every file."""
    downloads = fetch_addresses(config, folder)
    corpus = find_corpus(config.sources, downloads, folder / "unpacked", config.slice_bytes)
    log.info("corpus: %d files, %d bytes", len(corpus.files), corpus.bytes)
    for label, suffixes in corpus.passed_over.items():
        log.info("%s: %s", label, read_as(corpus, label) or "nothing that can be read")
        for note in notes_of(corpus, label):
            log.info("%s: %s", label, note)
        if suffixes:
            named = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.items())
            log.warning("%s: not read: %s", label, named)
    return corpus


def fetch_addresses(config: DataConfig, folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Return the files of each source that has an address, fetched now or before."""
    if all(source.address is None for source in config.sources):
        return {}
    from data_prep.fetch.remote_listing import fetch_sources  # httpx takes 0.2 s to import

    return fetch_sources(config.sources, folder)


def mapper(config: DataConfig, corpus: Corpus, workers: Workers) -> MapSlices:
    """Return what maps a function over slices; 'auto' starts processes, or Ray, only for a corpus that is worth it."""
    if config.executor == "auto" and corpus.bytes < PROCESSES_FROM_BYTES:
        return map
    large: Executor = "ray" if corpus.bytes >= RAY_FROM_BYTES else "local"
    return partial(workers.map_slices, executor=large if config.executor == "auto" else config.executor)


def config_digest(
    config: DataConfig, corpus: Corpus, model_path: str | None, seed: int, *, may_add_tokens: bool
) -> str:
    """Return the digest of everything that the shards and the manifest follow from."""
    added = {"may_add_tokens": True} if may_add_tokens and config.chat_template == "chatml" else {}
    return digest_of(
        {
            **added,
            "versions": [FORMAT_VERSION, SLICE_VERSION],
            "files": [[asdict(file.info), asdict(file.columns)] for file in corpus.files],
            "tokenizer": tokenizer_origin(config, model_path),
            "chat_template": read_template(config.chat_template, None),
            "train_on": config.train_on,
            "mixture": [[source.label, source.epochs, source.weight] for source in config.sources],
            "rows": [PACKING_VERSION, config.row_tokens, packing_method(config, corpus), config.shard_rows],
            "held_out": [HELD_OUT_VERSION, config.validation, config.validation_fraction, config.test_fraction],
            "cleaning": [CLEANING_VERSION, SIGNATURE_VERSION, config.cleaning.model_dump(mode="json")],
            "seed": seed,
        }
    )


def finished_manifest(folder: Path, digest: str) -> Manifest | None:
    """Return the folder's manifest if it is of this configuration and its files are all there."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(folder)
        for shard in (shard for shards in manifest.splits.values() for shard in shards):
            check_size(folder, shard.path, shard.bytes)
    except DataError as error:
        log.warning("preparing again: %s", error)
        return None
    if manifest.config_digest != digest:
        log.info("preparing again: the data's configuration or files have changed")
        return None
    return manifest


def encode_slices(
    slices: Sequence[Slice],
    corpus: Corpus,
    spec: EncoderSpec,
    cleaning: CleaningConfig,
    work: Path,
    map_slices: MapSlices,
) -> list[Path]:
    """Return the file of each slice's encoded documents; only what is missing is made."""
    spec_file = encoder_file(work, spec)
    write_spec(spec_file, spec)
    paths = [work / f"{digest}.arrow" for digest in slice_digests(slices, corpus, spec, cleaning)]
    missing = [
        SliceTask(
            parts=parts,
            spec=spec_file,
            cleaning=cleaning,
            target=path,
        )
        for parts, path in zip(slices, paths, strict=True)
        if not path.exists()
    ]
    sizes = [sum(part.end - part.start for part in task.parts) for task in missing]
    for _ in counted(map_slices(encode_slice, missing), sizes, "encoding", sum(sizes), "bytes"):
        pass
    log.info("%d slices: %d encoded, %d reused", len(slices), len(missing), len(slices) - len(missing))
    return paths


def rejected_lines(
    plan: PackingPlan, corpus: Corpus, paths: Sequence[Path], tokenizer: Any
) -> Iterator[dict[str, str]]:
    """Yield the samples of what was left out: why, where it stands, how it begins, what it repeats."""

    def place(file: int, record: int) -> str:
        return document_place(corpus.files[file].info, record)

    for sample in plan.samples:
        yield {"reason": sample.reason, "place": place(sample.file, sample.record), "text": sample.text}
    for repeat in plan.repeats:
        table = read_slice(paths[repeat.slice])
        begin, end = table.first[repeat.number : repeat.number + 2]
        text = tokenizer.decode(table.ids[begin : min(end, begin + EXCERPT_TOKENS)].tolist())
        yield {"reason": repeat.reason, "place": place(*repeat.place), "like": place(*repeat.leader), "text": text}


def encoder_file(work: Path, spec: EncoderSpec) -> Path:
    """Return where the workers find what they encode with."""
    return work / f"encoder-{spec.digests()[0][:32]}.json"


def unseal(folder: Path) -> None:
    """Make the folder unprepared before its shards change: never an old manifest over new shards."""
    if (folder / MANIFEST).exists():
        (folder / MANIFEST).unlink()
        fsync_path(folder)
    for split in SPLITS:
        shutil.rmtree(folder / split, ignore_errors=True)


def write_splits(
    config: DataConfig,
    folder: Path,
    spec: EncoderSpec,
    plan: PackingPlan,
    slices: Sequence[Path],
    map_slices: MapSlices,
) -> dict[str, list[ShardInfo]]:
    """Write the shards of every split; a split without rows has none, and no folder."""
    began = time.monotonic()
    row_format = RowFormat(row_tokens=config.row_tokens, vocab_size=spec.vocab_size, pad=spec.pad)
    tasks = [
        ShardTask(
            target=folder / relative,
            relative=relative,
            format=row_format,
            slices={int(number): slices[int(number)] for number in set(rows.slice.tolist())},
            plan=rows,
        )
        for split in SPLITS
        for relative, rows in shard_plans(split, plan.splits[split], config.shard_rows)
    ]
    rows = [task.plan.rows for task in tasks]
    shards: list[ShardInfo] = list(counted(map_slices(write_rows, tasks), rows, "writing", sum(rows), "rows"))
    splits = {split: [shard for shard in shards if shard.path.startswith(f"{split}/")] for split in SPLITS}
    for split, infos in splits.items():
        if infos:
            write_split_files(folder / split, infos, row_schema(config.row_tokens, spec.vocab_size), split)
    rows_written = sum(shard.rows for shard in shards)
    log.info("wrote %d rows in %d shards, %.1f s", rows_written, len(shards), time.monotonic() - began)
    return splits


def describe(
    config: DataConfig,
    corpus: Corpus,
    loaded: DataTokenizer,
    plan: PackingPlan,
    splits: dict[str, list[ShardInfo]],
    digest: str,
) -> Manifest:
    """Return the manifest of what was written. Raises DataError if a token is missing or too many."""
    tokenizer = loaded.tokenizer
    shards = [shard for infos in splits.values() for shard in infos]
    may_be_trained = range(plan.trained - plan.cuts, plan.trained + 1)
    return Manifest(
        version=FORMAT_VERSION,
        config_digest=digest,
        tokenizer_digest=digest_of_rules(tokenizer),
        template_digest=template_digest(tokenizer.chat_template),
        row_tokens=config.row_tokens,
        vocab_size=vocabulary_size(tokenizer),
        packing=packing_method(config, corpus),
        files=[file.info for file in corpus.files],
        splits=splits,
        documents=plan.counts,
        tokens=count_tokens(shards, config.row_tokens, plan.tokens, may_be_trained),
        conversational=plan.conversational,
        added_tokens=loaded.added_tokens,
        fill={split: fill(infos, config.row_tokens) for split, infos in splits.items() if infos},
    )


def fill(shards: Sequence[ShardInfo], row_tokens: int) -> float:
    """Return which share of the rows is tokens of documents, the rest being padding."""
    return round(sum(s.tokens for s in shards) / (sum(s.rows for s in shards) * row_tokens), 6)


def remove_except(work: Path, needed: set[Path]) -> None:
    """Remove from the work folder what this preparation does not need: old slices, rests of killed processes."""
    for path in set(work.iterdir()) - needed:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
