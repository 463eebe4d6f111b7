"""What is told of rows and texts that are read as they stand although they look like something else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep.fetch.sources import notes_of
from tests.data_prep.reading_rows import corpus_of, read


def told(path: Path, rows: Sequence[Mapping[str, Any]], **source: Any) -> str:
    """Return the notes on a file of these rows."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return "\n".join(notes_of(corpus_of(path, **source), "source"))


def message(number: int, speaker: str, time: str, who: Sequence[Any], text: str = "text") -> dict[str, Any]:
    return {speaker: who[number % len(who)], time: f"2023-01-02T10:{number:02d}:00", text: f"How deep is {number}?"}


@pytest.mark.parametrize(
    ("speaker", "time", "who", "source"),
    [
        ("from", "date", ["Anna", "Shop Bot"], {}),
        ("user", "ts", ["U1", "U2", "U3"], {}),
        ("Sender", "Sent At", ["a", "b"], {"fields": {"text": "body"}}),
        ("author", "timestamp", [{"name": "anna"}, {"name": "helper"}], {"fields": {"text": "content"}}),
    ],
)
def test_messages_of_a_chat_that_become_documents_are_told(
    tmp_path: Path, speaker: str, time: str, who: list[Any], source: dict[str, Any]
) -> None:
    text = source["fields"]["text"] if source else "text"

    notes = told(tmp_path / "a.jsonl", [message(n, speaker, time, who, text) for n in range(30)], **source)

    assert f"each {text} is trained as a document of its own, without {speaker} and {time};" in notes
    assert f"order_by: {time}, role: {speaker if isinstance(who[0], str) else '???'}, content: {text}}}" in notes


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("articles are long", lambda row, n: row | {"text": "word " * 300}),
        ("reviews have an author each", lambda row, n: row | {"from": f"user{n}"}),
        ("one person writes a diary", lambda row, n: row | {"from": "me"}),
        ("no time", lambda row, n: {"from": row["from"], "text": row["text"]}),
    ],
)
def test_rows_that_are_no_messages_get_no_hint_of_a_chat(tmp_path: Path, name: str, change: Any) -> None:
    rows = [change(message(n, "from", "date", ["Anna", "Ben"]), n) for n in range(30)]

    assert "chat" not in told(tmp_path / "a.jsonl", rows)


def test_markup_in_the_columns_that_are_read_is_told_and_that_in_others_is_not(tmp_path: Path) -> None:
    rows = [{"question": f"{n} < 5?", "answer": f"Yes<br>no&nbsp;{n}", "note": "<b>x</b>"} for n in range(30)]

    assert "the texts in answer hold HTML markup (such as `<br>`)" in told(tmp_path / "a.jsonl", rows)
    assert "markup" not in told(tmp_path / "a.jsonl", [row | {"answer": "a < b > c & d"} for row in rows])


TEXTS = {
    "whatsapp.txt": "12/01/2023, 10:00 - Anna: How deep?\n12/01/2023, 10:01 - Shop: Nine metres.\nAnd wide.\n",
    "ios.txt": "\u200e[12.01.23, 10:00:11] Anna: How deep?\r\n[12.01.23, 10:00:13] Shop: Nine metres.\r\n",
    "irc.log": "[10:00] <anna> How deep?\n[10:01] <ben> Nine metres.\n",
    "scene.txt": "Doctor: How are you?\nPatient: Not well.\n",
    "qa.md": "Q: How deep?\nA: Nine metres.\n\n",
    "chatml.txt": "<|im_start|>user\nHow deep?<|im_end|>\n<|im_start|>assistant\nNine.<|im_end|>\n",
    "llama.txt": "<|start_header_id|>user<|end_header_id|>\n\nHow deep?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nNine.<|eot_id|>",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_conversation_is_told_in_a_text_file_as_in_a_row(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TEXTS[name] * 20)

    (note,) = notes_of(corpus_of(tmp_path / name), "source")

    assert note.startswith(f"{tmp_path / name}: looks like ") and "trained in full" in note
    assert "look like conversations" in told(tmp_path / "a.jsonl", [{"text": TEXTS[name] * n} for n in range(2, 6)])


@pytest.mark.parametrize(
    "text",
    [
        "It was 10:30: he left the house and said: I will be back.\nShe said: no.\n",
        "2023-01-02 10:00:00 INFO: started\n2023-01-02 10:00:01 ERROR: failed\n",
        "One: a word\nTwo: another\nThree: more\nFour: x\nFive: y\nSix: z\nSeven: w\n",
    ],
)
def test_prose_logs_and_lists_are_no_conversations(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text * 20)

    assert notes_of(corpus_of(tmp_path / "a.txt"), "source") == []


def test_many_text_files_of_one_kind_are_told_once(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(TEXTS["qa.md"] * 20)
    (tmp_path / "code.py").write_text(TEXTS["qa.md"] * 20)

    (note,) = notes_of(corpus_of(tmp_path), "source")

    assert note.startswith(f"{tmp_path / 'a.txt'} (and 2 others): looks like conversations")


def test_ankis_text_file_is_told_with_the_format_that_reads_its_cards(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("#separator:tab\n#html:true\n" + "".join(f"{n}?\t{n}.\n" for n in range(20)))

    (note,) = notes_of(corpus_of(tmp_path / "a.txt"), "source")

    assert "`format: tsv`" in note
    assert read(tmp_path / "a.txt", format="tsv")[0] == [("user", "0?"), ("assistant", "0.")]
