from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from data_prep.config import DataConfig
from data_prep.encode import backend_parity as proof
from data_prep.encode import backends as engines
from data_prep.encode import parity_sample
from data_prep.encode.backend_parity import (
    BackendMismatchError,
    CheckedBackend,
    choose_backend,
    encoded_texts,
    hard_set,
)
from data_prep.encode.backends import (
    GigatokenBackend,
    HuggingFaceBackend,
    Ids,
    Offsets,
    Ragged,
    engine_version,
)
from data_prep.encode.tokenizer import SPECIAL_TOKENS, train_tokenizer
from data_prep.prepare import prepare
from data_prep.shards import Manifest
from data_prep.shards.tokenizer_files import open_tokenizer

pytest.importorskip("gigatoken", reason="pip install gigatoken")


@pytest.fixture(scope="module")
def rules() -> str:
    tokenizer = train_tokenizer(["Hello world, be kind and say bye to you. ünïcode 12 " * 20], 600)
    return str(tokenizer.backend_tokenizer.to_str())


def words(count: int, seed: int) -> str:
    choice = ["hello", "World", "be", "kind,", "bye.", "you", "42"]
    return " ".join(choice[(seed + n * n * (seed + 3)) % len(choice)] for n in range(count))


class Planted:
    """An engine that is right but for texts that hold `trap`: there it does what `fault` says to the ids."""

    def __init__(self, rules: str, trap: str, fault: str) -> None:
        self.right, self.trap, self.fault = GigatokenBackend(rules), trap, fault

    def wrong(self, ids: Ids) -> Ids:
        if self.fault == "lost":
            return ids[:-1]
        return np.concatenate([np.flip(ids[:2]), ids[2:]]) if self.fault == "swapped" else np.append(ids, ids[-1:])

    def encode_plain(self, texts: Sequence[bytes]) -> Ragged:
        ids = [
            self.wrong(i) if self.trap.encode() in t else i
            for t, i in zip(texts, self.right.encode_plain(texts), strict=True)
        ]
        return engines.ragged(ids)

    def encode_cut(self, texts: Sequence[bytes], cuts: Sequence[int]) -> tuple[Ragged, Offsets, Offsets]:
        return self.right.encode_cut(texts, cuts)

    def encode_marked(self, texts: Sequence[str]) -> list[tuple[Ids, Offsets]]:
        return self.right.encode_marked(texts)

    def spells(self, ids: Ids, text: bytes) -> bool:
        return self.right.spells(ids, text)


def test_gigatoken_gives_the_ids_and_spans_of_tokenizers(rules: str, test_data: Path) -> None:
    hostile = json.loads((test_data / "blns.json").read_text())
    turns = [f"<|im_start|>user\n {text}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>\n" for text in hostile]
    for each in (rules, open_tokenizer(test_data / "stories260k").backend_tokenizer.to_str()):
        fast, reference = GigatokenBackend(each), HuggingFaceBackend(each)

        proof.compare(fast, reference, [*hostile, *hard_set(SPECIAL_TOKENS)])

        proof.compare_marked(fast.encode_marked(turns), reference.encode_marked(turns), turns)


@pytest.mark.parametrize("trap", ["\u00a0", "ﬁ", "Ж", "\t\t", "7x", "漢", "~", "\u2019s"])
@pytest.mark.parametrize("fault", ["swapped", "lost", "doubled"])
def test_an_engine_that_errs_in_one_of_ten_thousand_documents_is_caught(rules: str, trap: str, fault: str) -> None:
    texts = [words(20, seed) for seed in range(50)] * 200
    texts[7_123] += f" and so {trap} it ends"
    engine = CheckedBackend(Planted(rules, trap, fault), HuggingFaceBackend(rules))

    with pytest.raises(BackendMismatchError, match=r"at token|do not spell"):
        for first in range(0, len(texts), 256):
            engine.encode_plain(encoded_texts(texts[first : first + 256]))


def test_the_same_ids_spelled_with_other_tokens_are_caught(rules: str) -> None:
    class Characters(Planted):
        """Spells what holds the trap character by character: every byte is right, the ids are not."""

        def wrong(self, ids: Ids) -> Ids:
            return self.right.encode_plain([bytes([byte]) for byte in self.right.plain.decode(ids)]).ids

    texts = [words(20, seed) for seed in range(50)] * 200
    texts[7_123] += " and so ~ it ends"
    engine = CheckedBackend(Characters(rules, "~", ""), HuggingFaceBackend(rules))

    with pytest.raises(BackendMismatchError, match="at token"):
        for first in range(0, len(texts), 256):
            engine.encode_plain(encoded_texts(texts[first : first + 256]))


def test_a_fault_deep_in_a_long_document_is_caught(rules: str) -> None:
    texts = [words(3000, 1), words(3000, 2) + " Ж " + words(3000, 3)]

    with pytest.raises(BackendMismatchError):
        CheckedBackend(Planted(rules, "Ж", "swapped"), HuggingFaceBackend(rules)).encode_plain(encoded_texts(texts))


@pytest.mark.parametrize("fault", ["swapped", "lost", "doubled"])
def test_ids_that_do_not_spell_a_text_are_told_wherever_they_are(
    rules: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "CHUNK", 7)
    engine = GigatokenBackend(rules)
    raw = " café — 12 naïve 漢字 and so it ends".encode()
    (ids,) = engine.encode_plain([raw])

    assert engine.spells(ids, raw) and engine.spells(ids[:0], b"")
    assert not engine.spells(ids, raw + b" ") and not engine.spells(ids, raw[:-1]) and not engine.spells(ids[:0], b"a")
    assert not engine.spells(np.append(ids, 10**6), raw)
    for at in range(len(ids) - 1):
        if ids[at] != ids[at + 1]:
            wrong = Planted(rules, "", fault).wrong(ids[at:])
            assert not engine.spells(np.concatenate([ids[:at], wrong]), raw)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6), st.sampled_from([2, 4, 8, 64]))
def test_each_first_meeting_of_kinds_is_found_once(raws: list[bytes], chunk: int) -> None:
    sample = parity_sample.ParitySample()
    met: set[tuple[int, int]] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity_sample, "CHUNK", chunk)
        for raw in raws:
            pairs = [(parity_sample.KINDS[one], parity_sample.KINDS[other]) for one, other in itertools.pairwise(raw)]
            found = sample.new_meetings(raw)

            assert {pairs[at] for at in found} == set(pairs) - met
            assert len(found) == len(set(pairs) - met)
            met |= set(pairs)


def test_an_engine_that_fails_the_hard_set_is_not_used(
    rules: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(engines.ENGINES, "gigatoken", lambda rules: Planted(rules, "\u0301", "lost"))
    engines.open_backend.cache_clear()

    choice = choose_backend("gigatoken", rules, SPECIAL_TOKENS, 1)

    engines.open_backend.cache_clear()
    assert choice.engine == engine_version("tokenizers") and "gigatoken" in str(choice.refused)
    assert "is not used with this tokenizer" in caplog.text


def test_a_small_corpus_is_encoded_with_the_reference_and_a_missing_engine_is_said(
    rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_backend("auto", rules, SPECIAL_TOKENS, 1000).engine == engine_version("tokenizers")
    assert choose_backend("auto", rules, SPECIAL_TOKENS, 2**30).engine == engine_version("gigatoken")

    monkeypatch.setattr(proof, "engine_version", lambda name: None if name == "gigatoken" else f"{name} 1")
    with pytest.raises(ConfigError, match=r"data.engine: gigatoken is not installed.*pip install gigatoken"):
        choose_backend("gigatoken", rules, SPECIAL_TOKENS, 1)
    assert choose_backend("auto", rules, SPECIAL_TOKENS, 2**30).engine == "tokenizers 1"


def test_both_engines_make_the_same_shards(corpus: Path, prepared: Callable[..., Manifest]) -> None:
    fast = prepared(corpus, into="fast", engine="gigatoken")
    slow = prepared(corpus, into="slow", engine="tokenizers")

    assert fast.engine["name"] == engine_version("gigatoken") and fast.engine["proof"]["texts"] > 500
    assert slow.engine == {"name": engine_version("tokenizers"), "proof": None, "refused": None}
    assert fast.splits == slow.splits and fast.tokens == slow.tokens


def test_an_engine_caught_while_encoding_is_replaced_before_a_shard_is_written(
    corpus: Path,
    config_of: Callable[..., DataConfig],
    tmp_path: Path,
    prepared: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (corpus / "books" / "99.txt").write_text("one line that ends with a trap ⌘ and continues")
    right = prepared(corpus, into="right", engine="tokenizers")
    monkeypatch.setitem(engines.ENGINES, "gigatoken", lambda rules: Planted(rules, " trap ⌘ and", "swapped"))
    engines.open_backend.cache_clear()

    planted = prepare(config_of(corpus, engine="gigatoken"), tmp_path / "planted", None, seed=1)

    engines.open_backend.cache_clear()
    assert planted.splits == right.splits
    assert planted.engine["name"] == engine_version("tokenizers")
    assert "gigatoken" in planted.engine["refused"] and "⌘" in planted.engine["refused"]
    assert "is not used with this tokenizer" in caplog.text
