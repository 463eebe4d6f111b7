"""A few odd rows do not decide how a file is read; rows that nearly all do not fit stop it with what to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from data_prep.config import SourceConfig
from data_prep.fetch.sources import find_corpus, parts_of
from data_prep.read.parts import Rejected, read_part

PAIRS = [{"question": f"How deep is {n}?", "answer": f"It is {n} metres."} for n in range(60)]
TEXTS = [{"text": f"The port number {n} is deep."} for n in range(20)]


def read(path: Path, **source: Any) -> list[str]:
    """Return each record's shape, or why it is rejected."""
    (file,) = find_corpus([SourceConfig(path=str(path), name="source", **source)], {}).files
    return [
        item.reason if isinstance(item, Rejected) else item.shape
        for part in parts_of(0, file, 2**30)
        for item in read_part(part)
    ]


@pytest.mark.parametrize(
    ("rows", "odd", "shape", "reason"),
    [
        (PAIRS, [b'"str"', {"question": 5, "answer": "x"}], "pair", ["missing column", "not text"]),
        (PAIRS, [{"question": "How deep?", "answer": 5}], "pair", ["not text"]),
        (PAIRS, [b'"str"'] * 9, "pair", ["missing column"] * 9),
        (TEXTS, [{"text": 5}], "text", ["not text"]),
        (
            [{**row, "system": "Be kind."} for row in PAIRS],
            [{**PAIRS[0], "system": {"a": 1}}],
            "pair",
            ["not text in system"],
        ),
        (
            [{"prompt": row["question"], "chosen": "Nine.", "rejected": "No."} for row in PAIRS],
            [{"prompt": 5, "chosen": "Nine.", "rejected": "No."}],
            "pair",
            ["not text"],
        ),
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_odd_rows_are_counted_and_all_others_read(
    lines_file: Callable[..., Path],
    rows: list[dict[str, str]],
    odd: list[Any],
    shape: str,
    reason: list[str],
    is_first: bool,
) -> None:
    found = read(lines_file(*((*odd, *rows) if is_first else (*rows, *odd))))

    assert [one for one in found if one != shape] == reason
    assert found.count(shape) == len(rows)


def test_nan_is_a_gap_and_says_nothing_of_its_column(lines_file: Callable[..., Path]) -> None:
    nan = float("nan")
    odd = [{**row, "answer": nan} for row in PAIRS[:20]]

    found = read(lines_file(*odd, *({**row, "system": nan} for row in PAIRS), {**PAIRS[0], "system": "Be kind."}))

    assert found == ["not text"] * 20 + ["pair"] * 61


def test_texts_alone_do_not_make_objects_of_unknown_columns_texts(lines_file: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"cannot tell what its columns are; columns seen: one, two\."):
        read(lines_file(*[{"one": "How deep is it?", "two": "Nine metres."}] * 30, b'"str"'))


def test_a_file_of_texts_alone_is_texts(lines_file: Callable[..., Path]) -> None:
    assert read(lines_file(*[b'"The port is deep."'] * 30)) == ["text"] * 30


def test_rows_that_nearly_all_do_not_fit_stop_and_one_pair_among_texts_is_no_file_of_pairs(
    lines_file: Callable[..., Path],
) -> None:
    with pytest.raises(DataError, match=r"60 of the 61 rows looked at would be rejected \(missing column: 60\)"):
        read(lines_file(*[b'"The port is deep."'] * 60, PAIRS[0]))


@pytest.mark.parametrize("fields", [{}, {"prompt": "question", "completion": "answer"}])
def test_answers_that_are_numbers_are_refused_with_how_to_write_them(
    lines_file: Callable[..., Path], fields: dict[str, Any]
) -> None:
    path = lines_file(*({"question": f"2+{n}", "answer": 2 + n} for n in range(30)))

    with pytest.raises(DataError, match=r'answer holds numbers in 30 of 30 rows.*write them as texts, "2" for 2'):
        read(path, **({"fields": fields} if fields else {}))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.txt"])
def test_a_pointer_of_git_lfs_is_named_and_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")

    with pytest.raises(DataError, match="a Git LFS pointer, not the file: run `git lfs pull`"):
        read(tmp_path / name)


def test_a_message_about_a_table_without_a_header_stays_short(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text((",".join(f"{n} {'word ' * 900}" for n in range(30)) + "\n") * 9)

    with pytest.raises(
        DataError, match=r"no header but a row.*`columns: \[column1, column2, \.\.\., column30\]`"
    ) as told:
        read(tmp_path / "a.csv")

    assert len(str(told.value)) < 3500


def test_a_header_that_names_two_columns_alike_is_not_called_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,question\nHow deep?,Nine metres.\n")

    with pytest.raises(DataError, match="Its first line has question more than once: if it is a header"):
        read(tmp_path / "a.csv")


def test_a_quote_a_space_and_a_quote_inside_a_text_are_no_missing_comma(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": 'He said "one" "two"'}, {"role": "assistant", "content": "It's 'a' 'b'."}]
    cell = str(talk).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages\n"{cell}"\n')

    assert read(tmp_path / "a.csv") == ["messages"]
