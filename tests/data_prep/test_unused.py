"""What is not read of rows is told; what stands around a pair reaches a model with and without a chat template."""

from __future__ import annotations

from data_prep.documents import Document, Rejected
from data_prep.ledger import summary
from data_prep.turns import Turn

PAIR = (Turn("user", "Hi"), Turn("assistant", "Ho"))


def test_columns_that_are_not_used_stand_in_the_manifest_and_the_table(prepared, lines_file):
    rows = [
        {"title": f"The port number {n}", "question": f"How deep is {n}?", "answer": f"It is {n} m."} for n in range(60)
    ]

    manifest = prepared({"path": str(lines_file(*rows)), "name": "ports"})

    assert manifest.documents["ports"]["unused"] == ["title"]
    assert "columns not used of ports: title" in summary(manifest)


def test_a_pair_with_a_system_text_is_a_conversation_where_there_is_a_template(prepared, lines_file):
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


def test_without_a_template_all_that_goes_before_an_answer_is_its_prompt(encoder_with):
    before = (Turn("system", "Be kind."), Turn("user", "A"), Turn("assistant", "B"))

    usable = encoder_with(None).usable(Document(0, "pair", (*before, *PAIR)))

    assert usable == Document(0, "pair", (Turn("user", "Be kind.\n\nA\n\nB\n\nHi"), Turn("assistant", "Ho")))


def test_without_a_template_a_pair_with_tools_is_a_counted_rejection(encoder_with):
    usable = encoder_with(None).usable(Document(0, "pair", PAIR, {"tools": [{"type": "function"}]}))

    assert usable == Rejected(0, "tools, and no chat template to write them with")
