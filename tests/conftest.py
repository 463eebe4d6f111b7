"""A model, data and a run, small enough to train on a CPU in seconds and made from nothing."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from cluster.launching.stop_request import SIGNALS
from data_prep.shards import Manifest, Piece, template_digest, tokenizer_digest
from data_prep.shards.writing import (
    PackedRow,
    PackedRows,
    list_others,
    row_schema,
    write_manifest,
    write_shard,
    write_split_files,
)
from tests.rank_server import RankServer

HERE = Path(__file__).parent

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores SIGINT in what it starts in the background, and the commands that are tested would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:  # threads of two workers would mostly wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("no clock", deadline=None)  # a shared machine may be slow: no test fails for that
settings.load_profile("no clock")

TOGETHER = {  # what one worker runs alone when two share the tests, because it shares something costly, or a machine
    "clusters": ("slurm/", "data_prep/test_executors.py", "data_prep/test_prepare.py", "data_prep/test_kills.py"),
    "transformers 4": ("models/",),
    "rank programs": ("training/zero/", "training/models/test_first_loss.py"),
}


def group_of(file: str) -> str:
    """Return the tests that must run in the same process as those of this file: the file's own, or more."""
    return next((group for group, paths in TOGETHER.items() if file.startswith(paths)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where two workers share the tests (-n 2), keep groups together.

    xdist's own way, `--dist loadgroup`, renames the tests, which pytest 9 does not let it do.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0].removeprefix("tests/"))

    return ByGroup(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest where two workers share the tests."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    first = list(TOGETHER)
    groups = {item: group_of(item.path.relative_to(HERE).as_posix()) for item in items}
    slow = {groups[item] for item in items if item.get_closest_marker("slow")}

    def turn(item: pytest.Item) -> int:
        group = groups[item]
        return first.index(group) if group in first else len(first) + (group not in slow)

    items.sort(key=turn)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Set aside, after each file, what the garbage collector would look at again and again: a million imported objects.

    Tests in this process take a seventh less time.
    """
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Put back how the log was set before a test, with the fixtures that it is the first to use: commands set it."""
    loggers = [logging.getLogger(name) for name in (None, "cluster", "data_prep", "training", "launch")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    result = yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
    return result


@pytest.fixture
def signals_given_back() -> Iterator[None]:
    """Give back the signals that a test takes over."""
    old = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_micro_batch_is_left() -> Iterator[None]:
    """Clear the micro batch of the attention function, which outlives a test: none may need the one before it."""
    yield
    if attention := sys.modules.get("training.step.document_attention"):
        vars(attention.CURRENT).update(vars(attention.Current()))


@pytest.fixture(scope="module", autouse=True)
def no_command_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail where the tests of a file leave one of our commands running: it would slow all that follow."""
    yield
    ours = str(tmp_path_factory.getbasetemp())
    left = [pid for pid, words in commands() if "launch" in words and any(word.startswith(ours) for word in words)]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, "commands that were left running, now killed"


def commands() -> Iterator[tuple[int, list[str]]]:
    """Yield the processes of this machine, each with its words."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            yield int(folder.name), (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")


WORDS = ("a", "run", "that", "ends", "is", "worth", "more", "than", "fast", "and", "every", "step", "counts", "once")


@pytest.fixture
def soak_log(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Say something at once, past pytest's capture: a soak takes minutes, and tests/SOAK.md keeps what it said."""

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"soak: {text}", flush=True)  # noqa: T201

    return say


@pytest.fixture
def soak_seed(request: pytest.FixtureRequest, soak_log: Callable[[str], None]) -> int:
    """Another seed for each run, told, so that it can be repeated: SOAK_SEED=... make soak."""
    seed = int(os.environ.get("SOAK_SEED") or random.SystemRandom().randrange(2**32))
    soak_log(f"{request.node.name}: SOAK_SEED={seed}")
    return seed


@pytest.fixture(scope="session")
def rank_server() -> Iterator[RankServer]:
    """Run the tests' own rank programs without importing everything once a rank."""
    server = RankServer()
    yield server
    server.stop()


def lines(count: int) -> list[str]:
    return [" ".join(WORDS[(line * 7 + word * word) % len(WORDS)] for word in range(24)) for line in range(count)]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a Llama of 35 000 random parameters and a tokenizer trained on a few lines."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines(50), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_shards(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write prepared data for `tiny_model`, two documents a row, and return its folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def write(*, rows: int = 96, validation_rows: int = 8, row_tokens: int = 64) -> Path:
        folder = tmp_path_factory.mktemp("tiny_shards")
        schema = row_schema(row_tokens, len(tokenizer))
        ids = np.array(tokenizer(" ".join(lines(400))).input_ids, dtype=np.uint32)
        counts = {"train": rows, "validation": validation_rows}
        splits = {}
        for split in counts:
            first = 0 if split == "train" else rows
            numbers = range(first, first + counts[split])
            relative = f"{split}/data-00000-of-00001.arrow"
            written = [tiny_row(np.resize(np.roll(ids, -31 * n), row_tokens), n) for n in numbers]
            splits[split] = [write_shard(folder / relative, relative, [PackedRows.of(written, len(tokenizer))], schema)]
            write_split_files(folder / split, splits[split], schema, split)
        tokenizer.save_pretrained(folder / "tokenizer")
        write_manifest(
            folder,
            Manifest(
                version=1,
                config_digest="",
                tokenizer_digest=tokenizer_digest(tokenizer),
                template_digest=template_digest(None),
                row_tokens=row_tokens,
                vocab_size=len(tokenizer),
                packing="concat",
                files=[],
                splits=splits,
                documents={},
                tokens={},
                conversational=False,
                others=list_others(folder),
            ),
        )
        return folder

    return write


def tiny_row(ids: np.ndarray[Any, np.dtype[np.uint32]], number: int) -> PackedRow:
    """Return a row of two documents, cut at another place in each row; the first token of each is not trained."""
    cut = len(ids) // 3 + number % 7
    mask = np.ones(len(ids), dtype=np.bool_)
    mask[[0, cut]] = False
    pieces = [
        Piece(tokens=cut, source=0, position=2 * number, start=0),
        Piece(tokens=len(ids) - cut, source=0, position=2 * number + 1, start=0),
    ]
    return PackedRow(input_ids=ids, loss_mask=mask, pieces=pieces)


@pytest.fixture(scope="session")
def run_yaml(tiny_model: Path, tiny_shards: Callable[..., Path]) -> Callable[..., Path]:
    """Write FOLDER/run.yaml, a run in FOLDER/run that trains `tiny_model`, and return it; keywords go to `train:`."""
    shards = tiny_shards()

    def write(folder: Path, **train: Any) -> Path:
        values = {
            "name": "tiny",
            "folder": str(folder / "run"),
            "trackers": [],
            "data": {"folder": str(shards), "sources": [{"path": "unused"}], "row_tokens": 64},
            "model": {"path": str(tiny_model)},
            "train": {"steps": 8, "global_batch_rows": 8, "micro_batch_rows": 2, "learning_rate": 1e-3, **train},
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "run.yaml"
        path.write_text(json.dumps(values, indent=1), encoding="utf-8")  # JSON is YAML
        return path

    return write


@pytest.fixture(scope="session")
def write_checkpoint() -> Callable[..., Path]:
    """Write a committed checkpoint of these fp32 weights, by name, as two ranks would; its moments are zeros."""
    import torch

    from training.checkpoints.layout import Commit, commit_folder, files_record, folder_of
    from training.checkpoints.shard_files import Span, rank_file_name, write_rank_file

    def write(checkpoints: Path, weights: dict[str, Any], *, step: int = 5, **identity: Any) -> Path:
        final = folder_of(checkpoints, step)
        partial = final.with_name(final.name + ".partial")
        partial.mkdir(parents=True)
        files = {}
        for rank in range(2):
            for kind in ("master", "exp_avg", "exp_avg_sq"):
                spans, data = [], []
                for name, tensor in weights.items():
                    part = torch.chunk(tensor.reshape(-1), 2)[rank] if tensor.numel() > rank else tensor.new_empty(0)
                    start = rank * -(-tensor.numel() // 2)
                    spans.append(Span(key=f"{kind}.{name}", start=start, numel=part.numel()))
                    data.append(part.clone() if kind == "master" else torch.zeros_like(part))
                name = rank_file_name(kind, rank, 2)
                files[name] = write_rank_file(partial / name, spans, data)
        commit = Commit(
            step=step,
            progress={"steps_done": step, "skipped": []},
            world_size=2,
            identity=identity,
            shapes={name: list(tensor.shape) for name, tensor in weights.items()},
            files=files_record(files),
        )
        commit_folder(partial, final, commit)
        return final

    return write
