from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import DataError
from data_prep.config import DataConfig
from data_prep.prepare import prepare
from data_prep.select.ledger import summary
from data_prep.shards import Manifest, ShardReader, read_manifest

SMALL = {"slice_bytes": 1024, "shard_rows": 16}


def rows_of(folder: Path, split: str = "train") -> tuple[ShardReader, Any]:
    manifest = read_manifest(folder)
    reader = ShardReader(folder, manifest, split)
    return reader, reader.rows(range(len(reader)))


@pytest.mark.parametrize("settings", [{"slice_bytes": 5000}, {"slice_bytes": 10**6}, {"workers": 2}])
def test_the_bytes_are_the_same_for_any_slices_and_workers(
    corpus: Path, prepared: Callable[..., Manifest], settings: dict[str, int]
) -> None:
    one = prepared(corpus, into="one", **SMALL)

    other = prepared(corpus, into="other", **{**SMALL, **settings})

    assert other.digest == one.digest
    assert len(one.splits["train"]) > 2


def test_the_bytes_are_the_same_for_three_workers(corpus: Path, prepared: Callable[..., Manifest]) -> None:
    one = prepared(corpus / "books", into="one", **SMALL)

    assert prepared(corpus / "books", into="other", **SMALL, workers=3).digest == one.digest


@pytest.mark.slow
def test_the_bytes_are_the_same_on_ray(corpus: Path, prepared: Callable[..., Manifest]) -> None:
    one = prepared(corpus, into="one", **SMALL)

    other = prepared(corpus, into="other", **SMALL, executor="ray", workers=2)

    assert other.digest == one.digest


def test_a_corpus_that_was_moved_gives_the_same_rows(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    one = prepared(corpus, into="one", **SMALL)

    moved = prepared(corpus.rename(tmp_path / "moved"), into="other", **SMALL)

    assert moved.content_digest == one.content_digest and moved.digest != one.digest


def test_a_restart_makes_only_the_slices_that_are_missing(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    one = prepared(corpus, **SMALL)
    slices = sorted((tmp_path / "data" / "work").glob("*.arrow"))
    removed = random.Random(0).sample(slices, len(slices) // 2)
    for path in [*removed, tmp_path / "data" / "manifest.json"]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in slices if path not in removed}

    assert prepared(corpus, **SMALL).digest == one.digest
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sorted((tmp_path / "data" / "work").glob("*.arrow")) == slices


def test_what_is_prepared_is_not_prepared_again(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    prepared(corpus, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}

    prepared(corpus, **SMALL, workers=2)

    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before
    assert "already prepared" in caplog.text


def test_settings_that_are_written_out_are_those_that_were_left_out(
    corpus: Path, config_of: Callable[..., DataConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = config_of(corpus / "books", **SMALL)
    prepare(config, tmp_path / "data", None, seed=1)

    prepare(DataConfig.model_validate_json(config.model_dump_json()), tmp_path / "data", None, seed=1)

    assert "already prepared" in caplog.text


def test_a_changed_setting_gives_the_bytes_of_a_fresh_run_and_leaves_nothing_old(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    prepared(corpus, **SMALL)

    changed = prepared(corpus, **SMALL, packing="concat", row_tokens=128)

    fresh = prepared(corpus, into="fresh", **SMALL, packing="concat", row_tokens=128)
    assert changed.digest == fresh.digest
    files = [sorted(p.relative_to(tmp_path / d) for p in (tmp_path / d).rglob("*.arrow")) for d in ("data", "fresh")]
    assert files[0] == files[1]


def test_a_changed_file_is_noticed_and_only_its_slices_are_made_again(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    settings = {**SMALL, "tokenizer": {"path": str(tmp_path / "tokenizer-source" / "tokenizer")}}
    prepared(corpus, into="tokenizer-source")
    one = prepared(corpus, **settings)
    work = tmp_path / "data" / "work"
    before = {path.name for path in work.glob("*.arrow")}
    (corpus / "pairs.jsonl").write_text(json.dumps({"prompt": "new", "completion": "pair"}) + "\n")

    other = prepared(corpus, **settings)

    after = {path.name for path in work.glob("*.arrow")}
    assert other.digest != one.digest
    assert len(after - before) == 1 and len(before & after) > 5


def a_setting(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    return {"cleaning": {"near_duplicates": "off", "unicode": "nfkc"}}


def a_private_data_rule(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    return {"cleaning": {"near_duplicates": "off", "private": {"email": "replace"}}}


def another_tokenizer(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    return {"tokenizer": {"path": str(tmp_path / "other-tokenizer" / "tokenizer")}}


def one_byte(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    data = bytearray((corpus / "books" / "11.txt").read_bytes())
    data[-1] ^= 1
    (corpus / "books" / "11.txt").write_bytes(data)
    return {}


def one_more_file(corpus: Path, tmp_path: Path) -> dict[str, Any]:
    (corpus / "books" / "00-before.txt").write_text("a book that is sorted before all but one")
    return {}


@pytest.mark.parametrize(
    ("change", "made_again"),
    [(a_setting, "all"), (a_private_data_rule, "all"), (another_tokenizer, "all"), (one_byte, 1), (one_more_file, 1)],
)
def test_what_a_change_touches_is_made_again_and_the_bytes_are_those_of_a_fresh_run(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path, change: Callable[..., Any], made_again: int | str
) -> None:
    prepared(corpus, into="own-tokenizer")
    prepared(corpus / "books", into="other-tokenizer")
    settings = {**SMALL, "tokenizer": {"path": str(tmp_path / "own-tokenizer" / "tokenizer")}}
    one = prepared(corpus, **settings)
    work = tmp_path / "data" / "work"
    before = {path.name for path in work.glob("*.arrow")}
    settings = {**settings, **change(corpus, tmp_path)}

    changed = prepared(corpus, **settings)

    after = {path.name for path in work.glob("*.arrow")}
    assert len(before) > 5
    assert len(after - before) == (len(after) if made_again == "all" else made_again)
    assert changed.digest == prepared(corpus, into="fresh", **settings).digest != one.digest


def test_a_damaged_shard_is_written_again(corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path) -> None:
    one = prepared(corpus, **SMALL)
    shard = tmp_path / "data" / one.splits["train"][0].path
    shard.write_bytes(shard.read_bytes()[:-8])

    assert prepared(corpus, **SMALL).digest == one.digest
    assert ShardReader(tmp_path / "data", one, "train")


def test_a_run_that_fails_leaves_the_old_data_as_it_was(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    prepared(corpus, **SMALL)
    before = {path: path.read_bytes() for path in (tmp_path / "data").glob("[mtv]*/*.arrow")}
    with (corpus / "chats.jsonl").open("a") as stream:
        for n in range(100):
            stream.write(json.dumps({"messages": [{"role": "user", "content": f"Hello {n}?"}]}) + "\n")

    with pytest.raises(
        DataError, match=r"100 of 192 records .* no turn has the role 'assistant' .*chats.jsonl:\d+: 'roles here: user"
    ):
        prepared(corpus, **SMALL)

    assert read_manifest(tmp_path / "data")
    assert {path: path.read_bytes() for path in before} == before


def test_every_document_and_token_is_accounted_for(
    corpus: Path, prepared: Callable[..., Manifest], lines_file: Callable[..., Path]
) -> None:
    odd = lines_file(b"{", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}, {"prompt": "a"})

    manifest = prepared(corpus, odd, **SMALL)

    ledger = manifest.documents[str(odd)]
    assert (ledger["read"], ledger["kept"]) == (4, 1)
    assert ledger["rejected"] == {"bad JSON": 1, "duplicate": 1, "missing column": 1}
    rows = manifest.rows("train") + manifest.rows("validation")
    assert sum(manifest.tokens.values()) == rows * 64
    assert sum(entry["tokens"] for entry in manifest.documents.values()) == sum(
        manifest.tokens[use] for use in ("trained", "masked")
    )
    assert "1 bad JSON, 1 duplicate, 1 missing column" in summary(manifest)
    assert f"train ({manifest.fill['train']:.2%} full), " in summary(manifest)


def test_rows_that_stay_empty_are_told_with_what_would_fill_them(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest]
) -> None:
    alike = lines_file(*({"prompt": f"{n:03d}" * 8, "completion": "x" * 8} for n in range(200)))

    narrow, wide = (summary(prepared(alike, into=str(tokens), row_tokens=tokens)) for tokens in (32, 512))

    assert "32 tokens: a larger data.row_tokens leaves less empty" in narrow
    assert "row_tokens" not in wide


def test_no_first_token_of_a_piece_and_no_padding_is_trained(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = prepared(corpus, **SMALL, packing="concat")

    _, batch = rows_of(tmp_path / "data")

    for mask, pieces in zip(batch.loss_mask, batch.piece_tokens, strict=True):
        ends = np.cumsum(pieces)
        assert not mask[ends - pieces].any() and not mask[ends[-1] :].any()
    assert manifest.packing == "concat"


def test_documents_cut_by_rows_can_be_put_together_again(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    prepared(corpus / "books", validation_fraction=0.0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "data" / "tokenizer")

    reader, batch = rows_of(tmp_path / "data")

    ids = [
        token for row, pieces in zip(batch.input_ids, batch.piece_tokens, strict=True) for token in row[: sum(pieces)]
    ]
    books = "".join(f"{path.read_text()}<|endoftext|>" for path in sorted((corpus / "books").iterdir()))
    assert tokenizer.decode(ids) == books
    assert {piece.source for row in range(len(reader)) for piece in reader.pieces(row)} == set(range(12))


def test_datasets_opens_a_split_as_it_stands(corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path) -> None:
    import datasets

    manifest = prepared(corpus, **SMALL)

    split = datasets.load_from_disk(str(tmp_path / "data" / "train"))

    _, batch = rows_of(tmp_path / "data")
    assert len(split) == manifest.rows("train")
    assert split[3]["input_ids"] == batch.input_ids[3].tolist()
    assert split[3]["loss_mask"] == batch.loss_mask[3].tolist()


def test_more_data_moves_no_document_between_the_splits(
    corpus: Path, prepared: Callable[..., Manifest], lines_file: Callable[..., Path], tmp_path: Path
) -> None:
    def held_out(into: str) -> set[tuple[str, int]]:
        manifest = read_manifest(tmp_path / into)
        reader = ShardReader(tmp_path / into, manifest, "validation")
        pieces = [piece for row in range(len(reader)) for piece in reader.pieces(row)]
        return {(manifest.files[piece.source].path, piece.position) for piece in pieces}

    prepared(corpus, into="less", validation_fraction=0.3)
    more = lines_file(*({"prompt": f"question {n}", "completion": "answer"} for n in range(50)))
    prepared(more, corpus, into="more", validation_fraction=0.3)

    old = {item for item in held_out("more") if item[0] != str(more)}
    assert old == held_out("less") and 10 < len(old) < 50


def test_an_empty_validation_split_is_said_and_can_be_read(
    corpus: Path, prepared: Callable[..., Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for book in ("09", "10", "11"):
        (corpus / "books" / f"{book}.txt").unlink()  # of ten, one would be held out

    manifest = prepared(corpus / "books", validation_fraction=1e-6)

    assert "validation is empty: none of 9 documents" in caplog.text
    assert manifest.splits["validation"] == [] and manifest.rows("validation") == 0
    assert len(ShardReader(tmp_path / "data", manifest, "validation")) == 0


def test_a_corpus_of_which_nothing_is_left_is_refused(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest]
) -> None:
    path = lines_file({"text": " "}, b"{")

    with pytest.raises(DataError, match=r"no document is left to train on .*rows.jsonl: 1 bad JSON, 1 empty"):
        prepared(path)


def test_conversations_are_packed_whole_and_running_text_is_joined(
    corpus: Path, prepared: Callable[..., Manifest]
) -> None:
    assert prepared(corpus, into="all").packing == "best_fit"
    assert prepared(corpus / "books", into="books").packing == "concat"
    assert prepared(corpus, into="all").conversational
    assert not prepared(corpus / "books", into="books").conversational


@pytest.mark.slow
def test_real_corpora_are_prepared_without_a_rest(
    test_data: Path, prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    tokenizer = {"train": {"vocab_size": 4096}}
    books = prepared(test_data / "books", into="books", tokenizer=tokenizer, row_tokens=1024, workers=None)
    questions = prepared(
        test_data / "gsm8k" / "train.jsonl",
        into="questions",
        tokenizer=None,
        model=str(test_data / "stories260k"),
        row_tokens=512,
        workers=None,
    )

    filled = [split for split, shards in books.splits.items() if shards]
    assert books.tokens["padding"] < 1024 * len(filled)  # only the last row of a split has some
    assert questions.documents[str(test_data / "gsm8k" / "train.jsonl")]["kept"] == 7473
    assert questions.packing == "best_fit"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ({"path": "formats"}, 4001),
        ({"path": "html"}, 60),
        ({"path": "languages"}, 3),
        ({"path": "peps"}, 187),
        ({"path": "t0"}, 6699),  # 200 answers are nothing but the token that ends them
        ({"path": "blns.json"}, 510),
        ({"path": "self_dialogue"}, 2475),
    ],
)
def test_every_real_corpus_goes_through_and_its_ledger_balances(
    test_data: Path, prepared: Callable[..., Manifest], tokenizer_folder: Path, source: dict[str, str], kept: int
) -> None:
    path = str(test_data / source["path"])

    manifest = prepared(
        {**source, "path": path},
        tokenizer={"path": str(tokenizer_folder)},
        chat_template="chatml",
        row_tokens=1024,
    )

    entry = manifest.documents[path]
    assert entry["kept"] + sum(entry["rejected"].values()) == entry["read"]
    chosen = ("duplicate", "near duplicate", "control token in a message")  # read well, and left out afterwards
    assert entry["kept"] + sum(n for reason, n in entry["rejected"].items() if reason.startswith(chosen)) == kept
