"""The `fields` of a source: which of the rows' columns are what."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, model_validator

from cluster.config_loading import Section
from data_prep.rows.row_layouts import KEYS

PLACEHOLDER = "???"
ROW_KEYS = ("role", "content", "train", "masked")  # of a message that is a row


def column(name: str) -> str:
    if name.startswith(PLACEHOLDER):
        raise ValueError(f"{PLACEHOLDER} stands for a column that you are to choose")
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
BESIDE = {  # what is read beside what
    "text": {"rows"},
    "prompt": {"system", "context", "input", "history", "tools", "label", "rows"},
    "messages": {"system", "context", "tools", "label", "rows", *KEYS},
    "group_by": {"order_by", "system", "context", "tools", "label", *ROW_KEYS},
    "parent_id": {"id", "rank", "system", "tools", *ROW_KEYS},
}


class Fields(Section):
    """Names of columns, of paths in them such as `a.b[0]`, or of several; and of the keys of a message."""

    text: Several = None
    """Running text."""
    prompt: Several = None
    """What is asked; of several columns those that a row has, in their order. Default with `completion`: prompt."""
    completion: Several = None
    """What is answered, and trained. Default with `prompt`: completion."""
    messages: Several = None
    """A conversation: a list of messages or of texts that two people say in turn, or the JSON of one; several columns
    (`"turn*"`, or a list of names) go on with it."""
    system: Several = None
    """The first turn."""
    context: Several = None
    """What stands before the question."""
    input: Several = None
    """What stands after the question."""
    history: One = None
    """What was said before the question: a list of [question, answer]."""
    tools: One = None
    """The tools that the assistant may call; default: tools."""
    label: One = None
    """Whether the answer is wanted; rows in which it is not are left out."""

    role: One = None
    """A message's key, or with `group_by` or `parent_id` a row's column, of who speaks; default: role or from."""
    content: One = None
    """Likewise what is said; default: content or value."""
    user: One = None
    """Of messages that are a question with its answer the key of the question."""
    assistant: One = None
    """Likewise of the answer."""
    train: One = None
    """The key that says whether a turn is trained; default: weight, train, training, loss or loss_weight."""
    masked: One = None
    """The key that says whether a turn is not trained."""

    rows: One = None
    """Where in each JSON value the rows lie."""
    group_by: One = None
    """The rows that have the same in this column are one conversation; each is a message."""
    order_by: One = None
    """The column that says where in its conversation a row stands; default: as in the file."""
    id: One = None
    """Of messages that are a tree the column that names each."""
    parent_id: One = None
    """Likewise the column that names the message that it answers."""
    rank: One = None
    """Likewise the column that ranks the answers to one message; 0 is the best."""

    @model_validator(mode="after")
    def check_one_shape(self) -> Self:
        given = self.given
        shapes = [shape for shape in BESIDE if given & HEADS.get(shape, {shape})]
        if len(shapes) > 1:
            raise ValueError(f"names {' and '.join(shapes)} together; give one: {CHOICES}")
        if given and not shapes and given != {"rows"}:
            raise ValueError(f"names {', '.join(sorted(given))} alone; give also {CHOICES}")
        for shape in shapes:
            accepted = BESIDE[shape] | HEADS.get(shape, {shape})
            if idle := sorted(given - accepted):
                listed = ", ".join(sorted(accepted))
                raise ValueError(f"{', '.join(idle)} says nothing beside {shape}; accepted there: {listed}")
        return self

    @model_validator(mode="after")
    def check_keys(self) -> Self:
        if self.parent_id and not self.id:
            raise ValueError("parent_id needs id: the column that names each message")
        if (self.user is None) != (self.assistant is None):
            raise ValueError("user and assistant go together: the keys of a question and of its answer")
        if self.user and (self.role or self.content):
            raise ValueError("user and assistant take the place of role and content; give either")
        if self.train and self.masked:
            raise ValueError("train and masked say the same; give one")
        return self

    @property
    def given(self) -> set[str]:
        """The names of what is given."""
        return {name for name in type(self).model_fields if getattr(self, name) is not None}
