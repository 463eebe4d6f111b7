"""What is not read of rows is told; what stands around a pair reaches a model with and without a chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_prep.documents import Turn
from data_prep.encode.encoding import Encoder
from data_prep.fetch.sources import not_read, notes_of, read_as
from data_prep.read.parts import Document, Rejected
from data_prep.select.ledger import summary
from data_prep.shards import Manifest
from tests.data_prep.reading_rows import corpus_of, read

PAIR = (Turn("user", "Hi"), Turn("assistant", "Ho"))
USER, SAID = ("user", "How deep is it?"), ("assistant", "Nine metres.")
ASKED = {"role": "user", "content": USER[1]}
ANSWERED = {"role": "assistant", "content": SAID[1]}


def test_columns_that_are_not_used_stand_in_the_manifest_and_the_table(
    prepared: Callable[..., Manifest], lines_file: Callable[..., Path]
) -> None:
    rows = [
        {"title": f"The port number {n}", "question": f"How deep is {n}?", "answer": f"It is {n} m."} for n in range(60)
    ]

    manifest = prepared({"path": str(lines_file(*rows)), "name": "ports"})

    assert manifest.documents["ports"]["unused"] == ["title"]
    assert "columns not used of ports: title" in summary(manifest)


def test_a_pair_with_a_system_text_is_a_conversation_where_there_is_a_template(
    prepared: Callable[..., Manifest], lines_file: Callable[..., Path]
) -> None:
    plain = [{"prompt": f"How deep is {n}?", "completion": f"It is {n} m."} for n in range(60)]

    tokens = [
        prepared(lines_file(*rows, name=f"{name}.jsonl"), into=name, tokenizer={"train": {"vocab_size": 512}}).documents
        for name, rows in (
            ("without", plain),
            ("with", [{**row, "system": "Be a pilot of the port."} for row in plain]),
        )
    ]

    (without,), (with_system,) = (counts.values() for counts in tokens)
    assert with_system["tokens"] > without["tokens"] + 60 * 6
    assert with_system["kept"] == without["kept"] == 60


def test_without_a_template_all_that_goes_before_an_answer_is_its_prompt(encoder_with: Callable[..., Encoder]) -> None:
    before = (Turn("system", "Be kind."), Turn("user", "A"), Turn("assistant", "B"))

    usable = encoder_with(None).usable(Document(0, "pair", (*before, *PAIR)))

    assert usable == Document(0, "pair", (Turn("user", "Be kind.\n\nA\n\nB\n\nHi"), Turn("assistant", "Ho")))


def test_without_a_template_a_pair_with_tools_is_a_counted_rejection(encoder_with: Callable[..., Encoder]) -> None:
    usable = encoder_with(None).usable(Document(0, "pair", PAIR, {"tools": [{"type": "function"}]}))

    assert usable == Rejected(0, "tools, and no chat template to write them with")


def test_what_is_trained_of_a_preference_and_what_is_not_read_is_told(lines_file: Callable[..., Path]) -> None:
    row = {
        "prompt": USER[1],
        "chosen": SAID[1],
        "rejected": "I have no idea at all.",
        "prompt_id": "a1",
        "origin": "http://a.b/c",
    }

    corpus = corpus_of(lines_file(row, row))

    assert not_read(corpus, "source") == ["rejected"]
    assert notes_of(corpus, "source") == [
        "columns with text that are not used: rejected",
        "the answers in chosen are trained, those in rejected are not",
        "other columns that are not used: prompt_id, origin",
    ]


def test_a_title_and_a_key_of_messages_that_are_not_read_are_named(lines_file: Callable[..., Path]) -> None:
    messages = [ASKED, {**ANSWERED, "comment": "said by the harbour master"}]

    corpus = corpus_of(lines_file({"title": "A day at the harbour", "messages": messages}))

    assert not_read(corpus, "source") == ["title", "messages[].comment"]


def test_running_text_that_looks_like_a_conversation_is_read_as_text_and_the_line_to_write_told(
    lines_file: Callable[..., Path],
) -> None:
    text = "### Human: Hello\n### Assistant: Hi there"
    path = lines_file({"text": text})

    assert read(path) == [[("text", text)]]
    (note,) = notes_of(corpus_of(path), "source")
    assert 'fields: {messages: text}, markers: {user: "### Human:", assistant: "### Assistant:"}' in note


def test_many_rows_that_will_be_rejected_are_told_at_the_start(lines_file: Callable[..., Path]) -> None:
    good, bad = {"prompt": "a", "completion": "b"}, {"prompt": "a", "reply": "b"}

    notes = notes_of(corpus_of(lines_file(*[good] * 5, *[bad] * 5)), "source")

    assert "5 of the 10 rows looked at are rejected: missing column" in notes


def test_a_column_of_tools_that_are_no_tools_is_not_read(lines_file: Callable[..., Path]) -> None:
    path = lines_file({"prompt": "Build a chair.", "completion": "Saw.", "tools": "a hammer and a saw"})

    assert read(path) == [[("user", "Build a chair."), ("assistant", "Saw.")]]
    assert not_read(corpus_of(path), "source") == ["tools"]


def test_a_column_without_a_name_is_not_told_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",question,answer\n" + "".join(f"{n},How deep is it?,Deep.\n" for n in range(30)))

    assert notes_of(corpus_of(tmp_path / "a.csv"), "source") == ["other columns that are not used: (unnamed)"]


def test_a_table_none_of_whose_rows_can_be_read_says_why_and_not_that_it_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n" + "How deep, then?,Well, deep\n" * 9)

    corpus = corpus_of(tmp_path / "a.csv")

    (note,) = notes_of(corpus, "source")
    assert note == "a.csv: none of its 9 records is a row (another number of columns than the header: 9)"
    assert "from text" not in read_as(corpus, "source")
    assert read(tmp_path / "a.csv") == ["another number of columns than the header"] * 9
