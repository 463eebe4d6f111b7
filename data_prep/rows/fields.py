"""The `fields` of a source: which column holds what."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, model_validator

from cluster.config_loading import Section
from data_prep.rows.row_layouts import KEYS

PLACEHOLDER = "???"
ROW_KEYS = ("role", "content", "train", "masked")  # of a message that is a row of its own


def column(name: str) -> str:
    if name.startswith(PLACEHOLDER):
        raise ValueError(f"{PLACEHOLDER} is a placeholder; write the name of a column")
    if not name.strip():
        raise ValueError("expected the name of a column, got an empty text")
    return name


def columns(names: str | list[str]) -> str | list[str]:
    if names == []:
        raise ValueError("expected at least one column")
    for name in [names] if isinstance(names, str) else names:
        column(name)
    return names


One = Annotated[str, AfterValidator(column)] | None
Several = Annotated[str | list[str], AfterValidator(columns)] | None


CHOICES = "text, or prompt and completion, or messages, or group_by, or id and parent_id"
HEADS = {"prompt": {"prompt", "completion"}}
BESIDE = {  # which fields may be given with which
    "text": {"rows"},
    "prompt": {"system", "context", "input", "history", "tools", "label", "rows"},
    "messages": {"system", "context", "tools", "label", "rows", *KEYS},
    "group_by": {"order_by", "system", "context", "tools", "label", *ROW_KEYS},
    "parent_id": {"id", "rank", "system", "tools", *ROW_KEYS},
}


class Fields(Section):
    """Names of columns, or paths in them such as `a.b[0]`, one or several; and the keys of a message."""

    text: Several = None
    """Running text."""
    prompt: Several = None
    """The question; of several columns, those that a row has are joined in order. Default with `completion`: prompt."""
    completion: Several = None
    """The answer, which is trained. Default with `prompt`: completion."""
    messages: Several = None
    """A conversation: a list of messages, or of texts that two speakers say in turn, or the JSON of one; several
    columns (`"turn*"`, or a list of names) continue it."""
    system: Several = None
    """The first turn."""
    context: Several = None
    """Text before the question."""
    input: Several = None
    """Text after the question."""
    history: One = None
    """Earlier turns: a list of [question, answer]."""
    tools: One = None
    """The tools that the assistant can call; default: tools."""
    label: One = None
    """Whether the answer is wanted; other rows are skipped and counted."""

    role: One = None
    """The message's key, or with `group_by` or `parent_id` the row's column, of the speaker; default: role or from."""
    content: One = None
    """Likewise of the text; default: content or value."""
    user: One = None
    """If each message is a question with its answer, the key of the question."""
    assistant: One = None
    """Likewise, the key of the answer."""
    train: One = None
    """The key of the flag that a turn is trained; default: weight, train, training, loss or loss_weight."""
    masked: One = None
    """The key of the flag that a turn is not trained."""

    rows: One = None
    """The path of the rows inside each JSON value."""
    group_by: One = None
    """Rows with the same value in this column are one conversation; each row is a message."""
    order_by: One = None
    """The column that orders the rows of a conversation: numbers or ISO 8601 times; default: the order in the file."""
    id: One = None
    """If the messages form a tree, the column of a message's id."""
    parent_id: One = None
    """Likewise, the column with the id of the message that it answers."""
    rank: One = None
    """Likewise, the column that ranks the answers to one message; 0 is the best."""

    @model_validator(mode="after")
    def check_one_shape(self) -> Self:
        given = self.given
        shapes = [shape for shape in BESIDE if given & HEADS.get(shape, {shape})]
        if len(shapes) > 1:
            raise ValueError(f"gives {' and '.join(shapes)} together; give one of: {CHOICES}")
        if given and not shapes and given != {"rows"}:
            raise ValueError(f"gives only {', '.join(sorted(given))}; also give {CHOICES}")
        for shape in shapes:
            accepted = BESIDE[shape] | HEADS.get(shape, {shape})
            if idle := sorted(given - accepted):
                listed = ", ".join(sorted(accepted))
                raise ValueError(f"{', '.join(idle)} cannot be used with {shape}; accepted with it: {listed}")
        return self

    @model_validator(mode="after")
    def check_answer_is_no_question(self) -> Self:
        pair = (self.prompt, self.completion)
        asked, answered = ({*([names] if isinstance(names, str) else names or ())} for names in pair)
        if both := sorted(asked & answered):
            raise ValueError(f"{', '.join(both)} is both the prompt and the completion; name the column of the answers")
        return self

    @model_validator(mode="after")
    def check_keys(self) -> Self:
        if self.parent_id and not self.id:
            raise ValueError("parent_id needs id: the column that names each message")
        if (self.user is None) != (self.assistant is None):
            raise ValueError("user and assistant go together: they are the keys of a question and of its answer")
        if self.user and (self.role or self.content):
            raise ValueError("user and assistant replace role and content; give one pair or the other")
        if self.train and self.masked:
            raise ValueError("train and masked are opposites; give one of them")
        return self

    @property
    def given(self) -> set[str]:
        """The names of the fields that are set."""
        return {name for name in type(self).model_fields if getattr(self, name) is not None}
