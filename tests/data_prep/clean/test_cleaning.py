from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError, DataError
from data_prep.clean.cleaning import Cleaner, check_languages
from data_prep.clean.rejected_samples import RejectedSample, drawn
from data_prep.config import CleaningConfig
from data_prep.read.parts import Document, Rejected, Turn
from data_prep.select.ledger import summary
from data_prep.shards import Manifest

ALL_OFF = {"repair": False, "control_characters": False, "unicode": "off", "whitespace": False}


def text_of(text: str, **settings: Any) -> str | Rejected:
    document = Document(0, "text", (Turn("text", text),))
    result = Cleaner(CleaningConfig.model_validate(settings)).cleaned(document)
    return result.turns[0].text if isinstance(result, Document) else result


def test_by_default_text_is_nfc_with_unix_lines_and_no_control_characters() -> None:
    assert text_of("cafe\u0301\r\nx\ry\x00\x1b\ud800\t z ") == "caf\u00e9\nx\ny\t z"
    assert text_of("a  \nb\t\n\n") == "a\nb"


@pytest.mark.parametrize(
    ("broken", "whole"),
    [("the cafÃ© is", "the café is"), ("itâ€™s", "it\u2019s"), ("itâ\x80\x99s", "it\u2019s"), ("PariÅ¡", "Pariš")],
)
def test_mojibake_is_repaired_line_by_line(broken: str, whole: str) -> None:
    assert text_of(f"É— “ok” naïve\n{broken}") == f"É— “ok” naïve\n{whole}"


@pytest.mark.parametrize("end", ["\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85"])
def test_what_ends_a_line_or_a_page_keeps_the_words_around_it_apart(end: str) -> None:
    assert text_of(f"one{end}two") == "one\ntwo"
    assert text_of("one\x1ftwo") == "one two"


def test_text_of_windows_1252_that_was_read_as_latin_1_gets_its_quotes_dashes_and_ellipses() -> None:
    cleaner = Cleaner(CleaningConfig())

    found = cleaner.cleaned(Document(0, "text", (Turn("text", "don\x92t \x93wait\x94\x85 5\x80\x81"),)))

    assert found == Document(0, "text", (Turn("text", "don\u2019t \u201cwait\u201d\u2026 5\u20ac"),))
    assert cleaner.changed == {"repaired": 1}
    assert text_of("don\x92t\x85", repair=False) == "dont"
    assert text_of("one\x85two") == "one\ntwo"  # alone, it is the end of a line


def test_every_step_can_be_switched_off() -> None:
    text = "itâ€™s \x07 cafe\u0301 \r\n\n"

    assert text_of(text, **ALL_OFF) == text
    assert text_of(text, **{**ALL_OFF, "repair": True}) == "it\u2019s \x07 cafe\u0301 \r\n\n"
    assert text_of(text, **{**ALL_OFF, "control_characters": True}) == "itâ€™s  cafe\u0301 \n\n"
    assert text_of("\ufb01", **{**ALL_OFF, "unicode": "nfkc"}) == "fi"


def test_spaces_of_a_prompt_stay() -> None:
    pair = Document(3, "pair", (Turn("user", "a  \n"), Turn("assistant", " b\n")))

    assert Cleaner(CleaningConfig()).cleaned(pair) == pair


@given(st.text(min_size=1))
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once = str(text_of(f"x{text}", repair=False))

    assert text_of(once, repair=False) == once


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        (" \n", {}, "empty"),
        ("short", {"min_chars": 10}, "shorter than 10 characters"),
        ("longer text", {"max_chars": 10}, "longer than 10 characters"),
        ("Das ist ein Satz auf Deutsch, nicht wahr?", {"languages": ["en", "fr"]}, "language: de"),
        ("me@x.org", {"private": {"email": "drop"}}, "private data: email"),
        ("a few words", {"quality": ["gopher"]}, "quality: gopher: fewer than 50 words"),
    ],
)
def test_a_document_is_rejected_with_its_reason_and_how_it_begins(
    text: str, settings: dict[str, Any], reason: str
) -> None:
    result = text_of(text, **settings)

    assert result == Rejected(0, reason)
    assert result.excerpt == text.strip().replace("me@x.org", "[EMAIL]")  # what was found is not kept


def test_rules_for_web_pages_leave_pairs_and_conversations_alone() -> None:
    pair = Document(0, "pair", (Turn("user", "hello hello"), Turn("assistant", "hello hello")))

    assert Cleaner(CleaningConfig(quality=["gopher", "repetition", "c4", "fineweb"])).cleaned(pair) == pair


def test_private_data_is_kept_replaced_or_dropped_by_kind() -> None:
    text = "me@x.org 8.8.8.8"
    cleaner = Cleaner(CleaningConfig.model_validate({"private": {"email": "replace", "card": "drop"}}))

    document = cleaner.cleaned(Document(0, "messages", (Turn("user", text), Turn("assistant", text))))

    assert document == Document(0, "messages", (Turn("user", "[EMAIL] 8.8.8.8"), Turn("assistant", "[EMAIL] 8.8.8.8")))
    assert cleaner.changed == {"email": 2, "documents with private data": 1}


def test_what_is_repaired_in_a_rejected_document_is_not_counted() -> None:
    cleaner = Cleaner(CleaningConfig.model_validate({"private": {"email": "replace"}, "min_chars": 30}))

    cleaner.cleaned(Document(0, "text", (Turn("text", "itâ€™s me@x.org"),)))
    assert not cleaner.changed
    cleaner.cleaned(Document(1, "text", (Turn("text", "itâ€™s me@x.org, or you@x.org if I am away"),)))
    assert cleaner.changed == {"email": 2, "documents with private data": 1, "repaired": 1}


def test_lines_that_c4_removes_are_counted_and_told(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest]
) -> None:
    sentences = "\n".join(f"This is the {n}th sentence of number {{0}}, and it has an end." for n in range(6))
    menu = "Home\nAbout us\n\n"
    path = lines_file(
        *({"text": menu + sentences.format(n)} for n in range(7)), {"text": sentences.format(9)}, {"text": menu}
    )

    manifest = prepared(path, cleaning={"quality": ["c4"], "near_duplicates": "off"}, validation_fraction=0.0)

    entry = manifest.documents[str(path)]
    assert entry["changed"] == {
        "quality c4: documents": 7,
        "quality c4: lines": 21,
        "quality c4: characters": 7 * len(menu),
    }
    assert entry["read"] == 9 and entry["kept"] == 8 and entry["rejected"] == {"quality: c4: fewer than 5 sentences": 1}
    assert "changed: 7 documents with 21 lines / 105 characters removed by quality c4" in summary(manifest)


@pytest.mark.parametrize(
    "said",
    [
        ["ok", "thanks"],
        ["for record, raw in enumerate(records):\n    yield document_of(record, raw, columns)\n" * 20],
        ["Was tut das?\n```python\nfor number in range(10):\n    print('this is what it prints', number)\n```"],
        ["1914 1918 3.14159 2,718 +49 12 % 10-11-12 7 8 9"],
        ['{"city": "Paris", "temperature": [12.5, 13.0], "unit": "celsius"}'],
    ],
)
def test_code_numbers_and_a_word_or_two_are_of_no_language_and_kept(said: list[str]) -> None:
    cleaner = Cleaner(CleaningConfig(languages=["de"]))
    document = Document(0, "messages", tuple(Turn("user", text) for text in said))

    assert cleaner.cleaned(document) == document
    assert cleaner.changed == {"language not judged": 1}


def test_what_is_said_in_a_conversation_is_judged_together_and_neither_roles_nor_code_nor_tool_calls_count() -> None:
    call = {"tool_calls": [{"function": {"name": "search", "arguments": {"query": "what the weather is like today"}}}]}
    code = "```\nif the_weather.is_fine: print('what a nice day it is today, let us go for a walk')\n```"
    turns = (
        Turn("user", "Wie geht es?"),
        Turn("assistant", "Gut, danke.", call),
        Turn("tool", '{"weather": "sunny with a few clouds", "wind": 12}'),
        Turn("user", "Und das Wetter?"),
        Turn("assistant", f"Es ist schön heute.\n{code}"),
    )

    kept, dropped = (Cleaner(CleaningConfig(languages=[code])) for code in ("de", "en"))

    assert kept.cleaned(Document(0, "messages", turns)) == Document(0, "messages", turns) and not kept.changed
    assert dropped.cleaned(Document(0, "messages", turns)) == Rejected(0, "language: de")


def test_a_language_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.cleaning.languages: tlh: not among the languages.*en"):
        check_languages(["en", "tlh"])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.text(max_size=2)), max_size=30), st.integers(0, 30))
def test_a_draw_of_draws_is_a_draw_of_all(items: list[tuple[str, str]], cut: int) -> None:
    samples = [RejectedSample(reason=reason, file=0, record=n, text=text) for n, (reason, text) in enumerate(items)]

    assert drawn([*drawn(samples[:cut], 3), *drawn(samples[cut:], 3)], 3) == drawn(samples, 3)


def test_samples_of_what_is_rejected_lie_beside_the_shards(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    rows = [{"text": f"Number {n} is a line of its own and no other line is like number {n}."} for n in range(30)]
    path = lines_file(b"{", *rows, rows[7], *({"text": " " * n} for n in range(5)))

    manifest = prepared(path, cleaning={"rejected_samples": 3}, validation_fraction=0.0)

    folder = tmp_path / "data" / "rejected"
    samples = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in folder.iterdir()}
    assert {name: len(lines) for name, lines in samples.items()} == {"bad_json": 1, "duplicate": 1, "empty": 3}
    assert samples["bad_json"] == [{"reason": "bad JSON", "place": f"{path}:1", "text": "{"}]
    assert samples["duplicate"][0]["place"] == f"{path}:32" and samples["duplicate"][0]["like"] == f"{path}:9"
    assert samples["duplicate"][0]["text"].startswith("Number 7 is a line")
    assert manifest.documents[str(path)]["rejected"] == {"bad JSON": 1, "duplicate": 1, "empty": 5}


def test_no_sample_holds_private_data_that_was_to_go(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    path = lines_file(b'{"me@x.org', {"text": "me@x.org"}, {"text": "anything else"})

    prepared(path, cleaning={"private": {"email": "drop"}}, validation_fraction=0.0)

    samples = "".join(file.read_text() for file in (tmp_path / "data" / "rejected").iterdir())
    assert samples.count("[EMAIL]") == 2 and "me@x.org" not in samples


def test_replacements_are_counted_and_the_same_for_any_slices_and_workers(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest]
) -> None:
    path = lines_file(
        *({"text": f"Write to user{n}@example.org or call +1 212 555 {n:04}, itâ€™s free."} for n in range(90))
    )
    settings = {"cleaning": {"private": {"email": "replace", "phone": "replace"}, "duplicates": False}}
    settings["cleaning"]["near_duplicates"] = "off"

    one = prepared(path, into="one", **settings)

    counts = {"documents with private data": 90, "email": 90, "phone": 90, "repaired": 90}
    assert one.documents[str(path)]["changed"] == counts
    assert "changed: 90 private email, 90 private phone in 90 documents, 90 repaired" in summary(one)
    assert prepared(path, into="other", **settings, slice_bytes=1500, workers=2).digest == one.digest


def test_a_corpus_of_which_cleaning_leaves_nothing_is_refused(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest]
) -> None:
    path = lines_file({"text": "a few words"}, {"text": "others"})

    with pytest.raises(DataError, match=r"no document is left to train on .*2 shorter than 100 characters"):
        prepared(path, cleaning={"min_chars": 100})


def test_the_samples_do_not_depend_on_slices_and_go_when_nothing_is_rejected(
    lines_file: Callable[..., Path], prepared: Callable[..., Manifest], tmp_path: Path
) -> None:
    path = lines_file(*({"text": f"{n} " + "word " * n} for n in range(200)))
    settings = {"cleaning": {"min_chars": 600, "rejected_samples": 5}, "validation_fraction": 0.0}
    prepared(path, into="one", **settings)
    prepared(path, into="other", **settings, slice_bytes=2048, workers=2)

    one, other = (
        {file.name: file.read_bytes() for file in (tmp_path / into / "rejected").iterdir()} for into in ("one", "other")
    )
    assert one == other and len(one["shorter_than_600_characters.jsonl"].splitlines()) == 5
    prepared(path, into="one", cleaning={"near_duplicates": "off"}, validation_fraction=0.0)
    assert not (tmp_path / "one" / "rejected").exists()
