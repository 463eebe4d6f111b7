"""Detect the kind of rows from a sample of a file's rows; ambiguous rows are left to the user."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_prep.files.bounded_io import RecordError
from data_prep.rows.column_looks import Rows, are_texts, columns_of, is_messages, texts_in, values_of
from data_prep.rows.roles import known_role
from data_prep.rows.row_layouts import Layout, Names
from data_prep.rows.turn_markers import HH, has_marks
from data_prep.rows.value_paths import opened, value_at

QUESTIONS = ("instruction", "prompt", "question", "query", "problem")
ANSWERS = ("output", "completion", "response", "answer", "solution")
ONLY_TOGETHER: tuple[tuple[str, str], ...] = (
    ("input", "output"),
    ("article", "summary"),
    ("article", "highlights"),
    ("document", "summary"),
)
ONLY_TOGETHER += (("dialogue", "summary"), ("inputs", "targets"), ("input", "target"), ("front", "back"))
SYSTEMS, CONTEXTS = ("system", "system_prompt"), ("context",)
CHOICES = ("choices", "options", "distractors", "distractor1")  # a question is incomplete without them
DIALOGUES = (
    "messages",
    "conversations",
    "conversation",
    "dialog",
    "dialogue",
    "dialogs",
    "data",
    "utterances",
    "turns",
    "chat",
)
CHOSEN, REJECTED = ("chosen", "chosen_messages"), re.compile("reject", re.IGNORECASE)
EXCHANGES = (
    ("input", "output"),
    ("question", "answer"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("prompt", "response"),
)
NUMBERED = 3  # at least so many columns that differ only in their number may be a dialogue;
SPOKEN = re.compile(
    r"(.*(?:turn|utterance|sentence|message)[ _.-]?)(\d+)", re.IGNORECASE
)  # they are one if they have such names
SHARE = 0.9  # of rows in which one column repeats another


@dataclass(frozen=True)
class Kind:
    """One way to read rows, and a note for the log."""

    layout: Layout
    note: str = ""


def kinds_of(rows: Rows) -> list[Kind]:
    """Return the kinds that rows can be read as: one, none, or several for the user to choose from."""
    names = columns_of(rows)
    preferred = list(preferences(rows, names))
    if preferred:
        return preferred
    pairs = list(pairs_of(rows, names))
    past = next((name for name in names if name.casefold() == "history"), None) if pairs else None
    found = [*trees(names), *conversations(rows, [name for name in names if name != past]), *numbered(names)]
    told = [pair for pair in pairs if not any(repeats(rows, pair.layout, other.layout) for other in found)]
    if found or told:
        return [*found, *told]
    return list(texts(rows, names))


def completed(layout: Layout, rows: Rows, names: Sequence[str]) -> Layout:
    """Return a layout with its optional columns: system, context, input, history, label."""
    plain = {name.casefold(): name for name in names}
    taken = {*layout.prompt, *layout.completion, *layout.messages}

    def beside(*wanted: str) -> Names:
        """Return the columns of these names that hold a text, or that later rows may have.

        For a pair, return all: a row whose `input` or `context` cannot be read is rejected, never trained without it.
        """
        there = (plain.get(name, name) for name in wanted)
        return tuple(name for name in there if name not in taken and (is_pair or may_say(rows, name)))

    is_pair = layout.shape == "pair"
    label = plain.get("label")
    has_verdicts = label is not None and are_verdicts(values_of(rows, label))
    return replace(
        layout,
        system=beside(*SYSTEMS),
        context=beside(*CONTEXTS),
        input=beside("input") if is_pair else (),
        history=plain.get("history", "history") if is_pair else None,
        label=label if has_verdicts else None,
    )


def may_say(rows: Rows, name: str) -> bool:
    """Return whether a column holds a text in any row, or is empty in all."""
    values = values_of(rows, name)
    return not values or any(isinstance(value, str) for value in values)


def is_text(rows: Rows, name: str) -> bool:
    """Return whether a column holds texts, disregarding a few odd values."""
    return are_texts(values_of(rows, name))


def texts_of(rows: Rows, name: str) -> list[str]:
    """Return the texts that a column holds."""
    return [value for value in values_of(rows, name) if isinstance(value, str)]


def are_verdicts(values: Sequence[Any]) -> bool:
    """Return whether a label's values are all true or false."""
    return bool(values) and all(isinstance(v, bool) or str(v).lower() in ("true", "false") for v in values)


def preferences(rows: Rows, names: Sequence[str]) -> Iterator[Kind]:
    """Yield the kind of rows with a better and a worse answer: the better one is trained."""
    for chosen in (name for name in CHOSEN if name in names):
        worse = ", ".join(name for name in names if REJECTED.search(name)) or "nothing else"
        note = f"the answers in {chosen} are trained, those in {worse} are not"
        for layout in chosen_layouts(rows, names, chosen):
            yield Kind(completed(layout, rows, names), note)
        return


def chosen_layouts(rows: Rows, names: Sequence[str], chosen: str) -> Iterator[Layout]:
    """Yield the layouts of the better answer: after a conversation or question, or as a whole conversation."""
    values = [opened_safely(value) for value in values_of(rows, chosen)]
    asked = [name for name in QUESTIONS if is_text(rows, name)]
    before = next((name for name in (*DIALOGUES, "prompt") if are_messages(rows, name)), None)
    if values and all(isinstance(value, list) for value in values):
        answers_only = all(is_messages(value) and begins_with_answer(value) for value in values)
        first = [] if not answers_only else [before] if before else asked
        yield from (Layout(messages=(name, chosen)) for name in first)
        if not first:
            yield Layout(messages=(chosen,))
    elif before is not None:
        yield Layout(messages=(before, chosen))
    elif is_text(rows, chosen) and asked:
        for name in asked:
            is_marked = all(text.rstrip().endswith("\n\nAssistant:") for text in texts_of(rows, name))
            marked = Layout(messages=(name, chosen), markers=HH)
            yield marked if is_marked else Layout(prompt=(name,), completion=(chosen,))
    elif is_text(rows, chosen) and all(has_marks(text, HH) for text in texts_of(rows, chosen)):
        yield Layout(messages=(chosen,), markers=HH)


def begins_with_answer(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the assistant speaks first."""
    name = messages[0].get("role", messages[0].get("from"))
    return known_role(str(name)) == "assistant"


def never_answers(rows: Rows, name: str) -> bool:
    """Return whether no conversation of a column ends with the assistant."""
    held = [opened_safely(value) for value in values_of(rows, name)]
    lasts = [str(value[-1].get("role", value[-1].get("from"))) for value in held if value]
    return bool(lasts) and all(known_role(last) != "assistant" for last in lasts)


def opened_safely(value: Any) -> Any:
    try:
        return opened(value) if isinstance(value, str) else value
    except RecordError:
        return value


def are_messages(rows: Rows, name: str) -> bool:
    values = [opened_safely(value) for value in values_of(rows, name)]
    return bool(values) and all(is_messages(value) for value in values if value != [])


def trees(names: Sequence[str]) -> Iterator[Kind]:
    """Yield the layout of Open Assistant's trees of messages."""
    if {"message_id", "parent_id", "role", "text"} <= set(names):
        rank = "rank" if "rank" in names else None
        yield Kind(Layout(id="message_id", parent_id="parent_id", role="role", content="text", rank=rank))


def conversations(rows: Rows, names: Sequence[str]) -> Iterator[Kind]:
    """Yield each column that holds conversations, except those that repeat an earlier one.

    Conversations that end with a question are continued by the one column of answers, if there is just one.
    """
    said = [name for name in names if conversation_layout(rows, name) and are_messages(rows, name)]
    asked = [name for name in said if never_answers(rows, name)]
    answers = [name for name in names if name.casefold() in ANSWERS and (name in said or is_text(rows, name))]
    if len(asked) == 1 and len(answers) == 1:
        yield Kind(completed(Layout(messages=(asked[0], answers[0])), rows, names))
        return
    found: list[str] = []
    for name in sorted(names, key=lambda name: DIALOGUES.index(name) if name in DIALOGUES else len(DIALOGUES)):
        layout = conversation_layout(rows, name)
        if layout is None or any(same(rows, name, other) for other in found):
            continue
        found.append(name)
        yield Kind(completed(layout, rows, names))


def conversation_layout(rows: Rows, name: str) -> Layout | None:
    """Return the layout of a column of conversations; None if it holds none."""
    held = [] if REJECTED.search(name) else [opened_safely(value) for value in values_of(rows, name)]
    values = [value for value in held if isinstance(value, list) and value]
    if held and name in DIALOGUES[:2] and all(value == [] for value in held):
        return Layout(messages=(name,))
    if not values or len(values) < len([value for value in held if value != []]) / 2:
        return None
    if sum(map(is_messages, values)) > len(values) / 2:
        return Layout(messages=(name,)) if name in (*DIALOGUES, "prompt") or are_known(values) else None
    if name not in DIALOGUES:
        return None
    is_said = all(isinstance(item, str) for value in values for item in value)
    if is_said and any(len(value) > 1 for value in values):
        return Layout(messages=(name,))
    return exchange_layout(name, values)


def are_known(values: Sequence[list[Any]]) -> bool:
    """Return whether every speaker has a known role: a list in a column of any name may be something else."""
    items = [item for value in values if is_messages(value) for item in value]
    return all(known_role(str(item.get("role", item.get("from")))) for item in items)


def exchange_layout(name: str, values: Sequence[list[Any]]) -> Layout | None:
    """Return the layout of a list of questions with their answers; None if it is not one."""
    items = [item for value in values for item in value]
    for question, answer in EXCHANGES:
        if all(isinstance(item, Mapping) and {question, answer} <= item.keys() for item in items):
            return Layout(messages=(name,), user=question, assistant=answer)
    return None


def numbered(names: Sequence[str]) -> Iterator[Kind]:
    """Yield columns such as turn_1, turn_2: they differ only in their number and are named after something said."""
    spoken = sorted((int(match[2]), match[1], match[0]) for match in map(SPOKEN.fullmatch, names) if match)
    first = spoken[0][0] if spoken else 0
    is_gapless = [number for number, _, _ in spoken] == list(range(first, first + len(spoken)))
    if len(spoken) >= NUMBERED and first < 2 and is_gapless and len({prefix for _, prefix, _ in spoken}) == 1:
        yield Kind(Layout(messages=(f"{spoken[0][1]}*",)))


def pairs_of(rows: Rows, names: Sequence[str]) -> Iterator[Kind]:
    """Yield every question column with every answer column."""
    plain = {name.casefold(): name for name in reversed(names)}
    if any(name in plain for name in CHOICES):
        return
    asked = [plain[name] for name in QUESTIONS if name in plain and is_text(rows, plain[name])]
    answered = [plain[name] for name in ANSWERS if name in plain and is_text(rows, plain[name])]
    if "answers" in plain and not answered and all("text" in opened_keys(v) for v in values_of(rows, plain["answers"])):
        answered = [f"{plain['answers']}.text[0]"]
    together = [(question, answer) for question in asked for answer in answered]
    if not together:
        texts = [(plain.get(q, q), plain.get(a, a)) for q, a in ONLY_TOGETHER]
        together = [(q, a) for q, a in texts if is_text(rows, q) and is_text(rows, a)]
    for question, answer in together:
        kind = Kind(completed(Layout(prompt=(question,), completion=(answer,)), rows, names))
        yield kind
        label = plain.get("label")
        if label and all(str(value) in ("0", "1") for value in values_of(rows, label)) and values_of(rows, label):
            yield replace(
                kind, layout=replace(kind.layout, label=label)
            )  # the label may mean wanted or not, or anything else


def opened_keys(value: Any) -> set[str]:
    value = opened_safely(value)
    return set(value) if isinstance(value, Mapping) else set()


def texts(rows: Rows, names: Sequence[str]) -> Iterator[Kind]:
    """Yield running text; if each row has a speaker and a conversation id, also the conversation."""
    name = next((name for name in names if name.casefold() == "text" and is_text(rows, name)), None)
    if name is None:
        return
    yield Kind(Layout(text=(name,)))
    group = next(
        (column for column in names if re.fullmatch(r"(conversation|dialog(ue)?|thread)_?id", column.casefold())), None
    )
    speaker = next((column for column in names if column.casefold() in ("role", "speaker", "from")), None)
    if group and speaker and any(known_role(str(value)) for value in values_of(rows, speaker)):
        yield Kind(Layout(group_by=group, role=speaker, content=name))


def same(rows: Rows, name: str, other: str) -> bool:
    """Return whether two columns have equal values in nearly every row."""
    both = [row[name] == row[other] for row in rows if row.get(name) and row.get(other)]
    return bool(both) and sum(both) >= SHARE * len(both)


def repeats(rows: Rows, pair: Layout, conversation: Layout) -> bool:
    """Return whether a conversation contains a pair's question and answer in nearly every row that has both."""
    flags = []
    for row in rows:
        held = [row[name] for name in conversation.columns(row)]
        said = [value_at(row, name) for name in (*pair.prompt, *pair.completion)]
        if held and all(isinstance(text, str) for text in said):
            whole = " ".join(texts_in(held))
            flags.append(all(text.strip() in whole for text in said))
    return bool(flags) and sum(flags) >= SHARE * len(flags)
