"""Turn a corpus into shards: fetch, encode, select, pack, write. Start here to read `data_prep`.

Each station has a folder of its own: `fetch` lists the sources' files and cuts them into slices; `encode` reads and
cleans each slice's documents (`read`, `rows`, `clean`) and turns them into token ids; `select` drops duplicates and
assigns documents to splits; `pack` decides which document goes into which row; `shards` is the format on disk.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import full_disk_named
from cluster.disk.lock_holder import Holder
from cluster.disk.locks import LockFile, hold_lock
from cluster.progress import counted
from cluster.wording import count_of
from data_prep.clean.cleaning import check_languages
from data_prep.clean.rejected_samples import FOLDER as REJECTED
from data_prep.clean.rejected_samples import write_rejected
from data_prep.config import CleaningConfig, DataConfig
from data_prep.encode.backend_parity import BackendMismatchError, choose_backend, refused
from data_prep.encode.encoded_slices import SliceFiles, SliceTask, encode_slice, read_slice, slice_digests
from data_prep.encode.encoding import EncoderSpec, write_spec
from data_prep.encode.tokenizer import encoder_spec, load_tokenizer, save_tokenizer
from data_prep.executors import Executor, Workers
from data_prep.fetch.corpus import fetch_corpus
from data_prep.fetch.provenance import document_place
from data_prep.fetch.sources import Corpus, Slice, cut_slices
from data_prep.finished_data import config_digest, finished_manifest
from data_prep.pack.row_plan import PackingPlan, make_plan
from data_prep.select.long_documents import line_ends
from data_prep.shards import Manifest
from data_prep.shards.writing import list_others, write_manifest
from data_prep.split_writing import MapSlices, describe, retract_manifest, write_splits

log = logging.getLogger(__name__)

LOCK = "prepare.lock"
PROCESSES_FROM_BYTES = 16 * 2**20  # below it, starting processes takes longer than the work; tokenizers have threads
RAY_FROM_BYTES = 256 * 2**20  # likewise for Ray
EXCERPT_TOKENS = 128


def prepare(
    config: DataConfig, folder: Path, model_path: str | None, seed: int, *, may_add_tokens: bool = False
) -> Manifest:
    """Prepare the data that `config` describes in `folder` and return its manifest; reuse what is already there.

    With `may_add_tokens`, the model gets embeddings for the chat template's tokens that its tokenizer lacks.

    The rows' bytes depend on the documents, the settings and the seed alone, never on the workers, the executor or
    interruptions: finished slices are kept in `folder/work`. Old data stays in place until the new rows are planned.
    Raises ConfigError, DataError or ClusterError for whatever the user has to fix, which includes a full disk and
    another preparation running in `folder`.
    """
    folder = folder.resolve()
    check_languages(config.cleaning.languages)  # reports wrong cleaning settings before anything is fetched
    with full_disk_named(folder), hold_lock(LockFile(folder / LOCK, holder=Holder.here("shardline prepare"))):
        return prepare_locked(config, folder, model_path, seed, may_add_tokens=may_add_tokens)


def prepare_locked(
    config: DataConfig, folder: Path, model_path: str | None, seed: int, *, may_add_tokens: bool
) -> Manifest:
    """Do the work of `prepare` while holding the folder's lock."""
    work = folder / "work"
    with Workers(config.workers) as workers:
        corpus = fetch_corpus(config, folder)
        digest = config_digest(config, corpus, model_path, seed, may_add_tokens=may_add_tokens)
        finished = finished_manifest(folder, digest)
        if finished is not None:
            log.info("already prepared: %s, %s in train", folder, count_of(finished.rows("train"), "row"))
            return finished
        map_slices = mapper(config, corpus, workers)
        loaded = load_tokenizer(config, model_path, corpus, work, may_add_tokens=may_add_tokens)
        tokenizer = loaded.tokenizer
        spec = encoder_spec(tokenizer, corpus, config.train_on)
        slices = cut_slices(corpus, config.slice_bytes)
        choice = choose_backend(config.engine, spec.rules, spec.control_tokens, corpus.bytes, is_text=corpus.is_text)
        spec = replace(spec, engine=choice.engine)
        try:
            paths = encode_slices(slices, corpus, spec, config.cleaning, work, map_slices)
        except BackendMismatchError as problem:  # after one wrong id, no slice of this backend is used
            choice = refused(spec.engine, problem)
            spec = replace(spec, engine=choice.engine)
            paths = encode_slices(slices, corpus, spec, config.cleaning, work, map_slices)
        plan = make_plan(config, corpus, slices, SliceFiles(paths), seed, partial(line_ends, tokenizer))
        write_rejected(folder / REJECTED, rejected_lines(plan, corpus, paths, tokenizer))
        retract_manifest(folder)
        splits = write_splits(config, folder, spec, plan, paths, map_slices)
    save_tokenizer(tokenizer, folder / "tokenizer")
    described = describe(config, corpus, loaded, plan, splits, digest)
    manifest = write_manifest(folder, replace(described, engine=choice.as_json(), others=list_others(folder)))
    trained_tokenizer = Path(tokenizer.name_or_path)  # a tokenizer that was trained here lies in `work`
    remove_except(work, {*paths, encoder_file(work, spec), trained_tokenizer})
    return manifest


def mapper(config: DataConfig, corpus: Corpus, workers: Workers) -> MapSlices:
    """Return a `map` over slices: with executor `auto`, only a large corpus starts processes, or Ray."""
    if config.executor == "auto" and corpus.bytes < PROCESSES_FROM_BYTES:
        return map
    large: Executor = "ray" if corpus.bytes >= RAY_FROM_BYTES else "local"
    return partial(workers.map_slices, executor=large if config.executor == "auto" else config.executor)


def encode_slices(
    slices: Sequence[Slice],
    corpus: Corpus,
    spec: EncoderSpec,
    cleaning: CleaningConfig,
    work: Path,
    map_slices: MapSlices,
) -> list[Path]:
    """Encode the slices that have no file yet and return the file of each."""
    spec_file = encoder_file(work, spec)
    write_spec(spec_file, spec)
    paths = [work / f"{digest}.arrow" for digest in slice_digests(slices, corpus, spec, cleaning)]
    missing = [
        SliceTask(parts=parts, spec=spec_file, cleaning=cleaning, target=path)
        for parts, path in zip(slices, paths, strict=True)
        if not path.exists()
    ]
    sizes = [sum(part.end - part.start for part in task.parts) for task in missing]
    for _ in counted(map_slices(encode_slice, missing), sizes, "encoding", sum(sizes), "bytes"):
        pass
    reused = len(slices) - len(missing)
    log.info("%s: %d encoded, %d reused", count_of(len(slices), "slice"), len(missing), reused)
    return paths


def encoder_file(work: Path, spec: EncoderSpec) -> Path:
    """Return the file from which the workers read the encoder's specification."""
    return work / f"encoder-{spec.digests()[0][:32]}.json"


def rejected_lines(
    plan: PackingPlan, corpus: Corpus, paths: Sequence[Path], tokenizer: Any
) -> Iterator[dict[str, str]]:
    """Yield samples of the rejected documents: the reason, the place, the first text, and what a duplicate repeats."""

    def place(file: int, record: int) -> str:
        return document_place(corpus.files[file].info, record)

    for sample in plan.samples:
        yield {"reason": sample.reason, "place": place(sample.file, sample.record), "text": sample.text}
    for repeat in plan.repeats:
        table = read_slice(paths[repeat.slice])
        begin, end = table.first[repeat.number : repeat.number + 2]
        text = tokenizer.decode(table.ids[begin : min(end, begin + EXCERPT_TOKENS)].tolist())
        yield {"reason": repeat.reason, "place": place(*repeat.place), "like": place(*repeat.leader), "text": text}


def remove_except(work: Path, needed: set[Path]) -> None:
    """Remove what this preparation does not need from its work folder: old slices, leftovers of killed processes."""
    for path in set(work.iterdir()) - needed:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # a worker that outlives a killed process by a moment renames its file
