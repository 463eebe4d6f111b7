"""Group the rows of a file into conversations, wherever they are in it, and unpack rows nested in a JSON value.

The rows are held in memory until the end of the file, so a file of more than JOINED_BYTES is refused unread.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from data_prep.files.bounded_io import RecordError
from data_prep.rows.messages import KNOWN_KEYS
from data_prep.rows.record_shapes import ROWS
from data_prep.rows.roles import known_role, speaker
from data_prep.rows.row_layouts import EXTRA_COLUMNS, Layout
from data_prep.rows.value_paths import MISSING, value_at

JOINED_BYTES = 2**30  # of a file; its rows take two to three times as much as Python objects, and so do its documents
DELETED = "deleted"  # Open Assistant's column for a withdrawn message
SAME_POSITION = "two rows of the conversation with the same position"
DATE_CHARS = 10  # at most, of an ISO 8601 date without a time
UTC_NAME = re.compile(r" ?(?:UTC|GMT)$")
FRACTION = re.compile(r"[.,]([0-9]+)")  # of a second
DIGIT = re.compile("[0-9]")
LAST_NUMBER = re.compile("[0-9]+[^0-9]*$")
YEAR_FIRST = re.compile(
    r"[12]\d{3}([/._ -])(?:0\d|1[0-2])\1\d\d(?:[ T_,-]+(?:[01]\d|2[0-3]):\d\d(?::\d\d(?:[.,]\d+)?)?)?"
)
CLOCK = re.compile(r"\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?")  # a time of day, or of a recording
TWELVE_HOURS = re.compile(r"\d\s*[ap]\.?m\b", re.IGNORECASE)

Record = Mapping[str, Any]
Parse = Callable[[Any], Record]


def joined(records: Iterable[Any], layout: Layout, parse: Parse) -> Iterator[Record | RecordError]:
    """Yield the documents of a file's records: grouped conversations, or the rows nested in each value.

    A row that belongs to no conversation is yielded as an RecordError, so that it is counted.
    """
    if layout.rows is not None:
        yield from inner_rows(records, layout.rows, parse)
        return
    rows: list[Record] = []
    for record in records:
        try:
            row = parse(record)
            if row.get(DELETED) is True:
                raise RecordError("marked as deleted")
            kept = (*columns_read(layout, tuple(row)), *(name for name in EXTRA_COLUMNS if name in row))
            rows.append({name: row[name] for name in kept})
        except RecordError as objection:
            yield objection
    yield from grouped(rows, layout) if layout.group_by is not None else paths_of_trees(rows, layout)


@lru_cache(maxsize=256)  # most rows have the same columns
def columns_read(layout: Layout, seen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns among `seen` that are read; for rows that are messages, also a message's usual keys."""
    keys = (name for name in seen if layout.is_joined and (name in KNOWN_KEYS or name == DELETED))
    return tuple(dict.fromkeys([*layout.columns(seen), *keys]))


def inner_rows(records: Iterable[Any], path: str, parse: Parse) -> Iterator[Record | RecordError]:
    """Yield the items of the list at a path of each record."""
    for record in records:
        try:
            rows = value_at(parse(record), path)
        except RecordError as objection:
            yield objection
            continue
        if not isinstance(rows, list):
            yield RecordError("no list of rows")
            continue
        yield from (row if isinstance(row, dict) else RecordError("not a JSON object") for row in rows)


def grouped(rows: Iterable[Record], layout: Layout) -> Iterator[Record | RecordError]:
    """Yield the conversations of rows grouped by a column, in the order of their first rows."""
    groups: dict[Any, list[Record]] = defaultdict(list)
    for row in rows:
        key = key_at(row, layout.group_by)
        if key is None:
            yield RecordError("missing column")
        else:
            groups[key].append(row)
    for members in groups.values():
        yield ordered(members, layout.order_by)


def key_at(row: Record, path: str | None) -> str | None:
    """Return the id at a row's path, as text; None if there is none."""
    value = value_at(row, str(path))
    if not isinstance(value, str | int | float) or value in ("", None) or value != value:
        return None
    return str(value).removesuffix(".0")  # pandas writes integers as floats if a column has gaps


def ordered(rows: list[Record], order_by: str | None) -> Record | RecordError:
    """Return rows as one conversation, sorted by `order_by`, or why their order is not certain."""
    if order_by is None:
        return conversation(rows)
    places = [value_at(row, order_by) for row in rows]
    if any(place in (MISSING, None, "") or place != place for place in places):
        return RecordError("a row of the conversation without its position")
    try:
        keys = sort_keys([str(place).strip() for place in places])
    except RecordError as objection:
        return objection
    if len(set(keys)) < len(keys):
        return RecordError(SAME_POSITION)
    return conversation([row for _, row in sorted(zip(keys, rows, strict=True), key=lambda pair: pair[0])])


def sort_keys(places: list[str]) -> list[Any]:
    """Return what the positions of one conversation are sorted by: numbers, moments, or texts of a fixed form.

    Raises RecordError if they are of several kinds, or of none whose order is certain.
    """
    numbers = list(map(number_of, places))
    if None not in numbers or len(places) == 1:
        return numbers
    moments = list(map(moment_of, places))
    if None not in moments:
        if len({moment.tzinfo is None for moment, _ in filter(None, moments)}) > 1:
            raise uncertain("times with and without an offset from UTC")
        if len({len(place) <= DATE_CHARS for place in places}) > 1:
            raise uncertain("dates with and without a time")
        return moments
    if any(number is not None for number in numbers):
        raise uncertain("numbers and texts")
    if not sort_as_texts(places):
        raise uncertain("texts that may sort otherwise than they are meant")
    return places


def uncertain(found: str) -> RecordError:
    return RecordError(
        f"order_by holds {found}; write numbers or ISO 8601 times, or drop `order_by` if the file is in order"
    )


def number_of(place: str) -> Decimal | None:
    """Return a position as a number, exactly: ids of messages have more digits than a float."""
    try:
        number = Decimal(place)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def moment_of(place: str) -> tuple[datetime, Decimal] | None:
    """Return an ISO 8601 date or time as a moment in whole seconds, and the fraction with all its digits."""
    try:
        moment = datetime.fromisoformat(UTC_NAME.sub("+00:00", place))
    except ValueError:
        return None
    fraction = FRACTION.search(place)
    return moment.replace(microsecond=0), Decimal(f"0.{fraction[1]}" if fraction else 0)


def sort_as_texts(places: list[str]) -> bool:
    """Return whether texts have the order of what they say: all digits have their place, and the greater come first.

    Where several numbers of a text differ, which of them is the greater is known of dates and times alone.
    """
    if len({DIGIT.sub("0", place) for place in places}) > 1 or any(map(TWELVE_HOURS.search, places)):
        return False
    if all(YEAR_FIRST.fullmatch(place) or CLOCK.fullmatch(place) for place in places):
        return True
    last = LAST_NUMBER.search(places[0])
    return last is None or len({place[: last.start()] for place in places}) == 1


def order_key(place: Any) -> tuple[int, float, str]:
    try:
        return 0, float(place), ""
    except (TypeError, ValueError):
        return 1, 0.0, str(place)


def conversation(rows: list[Record]) -> Record:
    """Return rows as one row: the first value of each column, and the rows themselves."""
    head: dict[str, Any] = {}
    for row in rows:
        head |= {name: value for name, value in row.items() if value is not None and head.get(name) is None}
    return {**head, ROWS: rows}


def paths_of_trees(rows: list[Record], layout: Layout) -> Iterator[Record | RecordError]:
    """Yield conversations from trees of messages: from each tree the path of the best-ranked answers, or every path.

    Without ranks, the first answer counts as the best. A row that no root message leads to is an RecordError.
    """
    by_name: dict[Any, Record] = {}
    for row in rows:
        name = key_at(row, layout.id)
        if name is None or name in by_name:  # a duplicate id could form a cycle
            yield RecordError("missing column" if name is None else "duplicate id")
        else:
            by_name[name] = row
    answers: dict[Any, list[Any]] = defaultdict(list)
    for name, row in by_name.items():
        answers[key_at(row, layout.parent_id)].append(name)
    for parent, names in answers.items():
        if parent is not None:
            names.sort(key=lambda name: rank_of(by_name[name], layout))
    for root in answers.get(None, ()):
        yield from paths_from(root, answers, by_name, layout)
    reached = below(answers.get(None, ()), answers)
    yield from (RecordError("not reachable from a root message") for name in by_name if name not in reached)


def paths_from(
    root: Any, answers: Mapping[Any, list[Any]], by_name: Mapping[Any, Record], layout: Layout
) -> Iterator[Record | RecordError]:
    """Yield the paths from a tree's root message to its last answers, the best first."""
    done: set[Any] = set()
    left = [[root]]
    while left:
        path = left.pop()
        following = answers.get(path[-1], [])
        left += [[*path, name] for name in reversed(following[:1] if layout.paths == "best" else following)]
        if following:
            continue
        while path and asks(by_name[path[-1]], layout):
            path.pop()
        if path and path[-1] not in done:
            done.add(path[-1])
            yield conversation([by_name[name] for name in path])
    if not done:
        yield RecordError("no answer in the tree")


def asks(row: Record, layout: Layout) -> bool:
    name = value_at(row, layout.role or "role")
    called = speaker(name)
    return called is not None and known_role(called, layout.roles) == "user"


def below(names: Iterable[Any], answers: Mapping[Any, list[Any]]) -> set[Any]:
    """Return the messages and all their descendants."""
    found: set[Any] = set()
    left = list(names)
    while left:
        name = left.pop()
        found.add(name)
        left += answers.get(name, ())
    return found


def rank_of(row: Record, layout: Layout) -> tuple[int, float, str]:
    """Return the sort key of an answer: unranked answers come last."""
    rank = None if layout.rank is None else value_at(row, layout.rank)
    return (2, 0.0, "") if rank is None or rank is MISSING or rank == "" else order_key(rank)
