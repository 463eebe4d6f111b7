"""What is sent to a tracker, and how much of a run's journal has been sent."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.config_loading import read_yaml
from cluster.disk.atomic_files import write_json
from cluster.errors import ClusterError

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Point:
    """Numbers of one step (from 1). `time_ms` is when they were measured, in milliseconds since 1970."""

    step: int
    time_ms: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Note:
    """An event of the run as a sentence. `number` is its place in the journal, from 1."""

    number: int
    step: int
    time_ms: int
    text: str


@dataclass(frozen=True, kw_only=True)
class News:
    """What a tracker has not got yet.

    With `rewound_to`, the steps after that one were taken again: what was sent of them is out of date.
    """

    steps: Sequence[Point] = ()
    validations: Sequence[Point] = ()
    notes: Sequence[Note] = ()
    rewound_to: int | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.steps or self.validations or self.notes) and self.rewound_to is None


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """How much of the journal one tracker has: the number of events, the last step, the last validation's step.

    `id` names the run in the tracker, also after a restart. It is drawn once and never changes.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    events: int = 0
    step: int = 0
    validation: int = -1
    configuration: str = ""  # the digest of the one that was sent
    version: int = VERSION

    @classmethod
    def read(cls, path: Path) -> Cursor:
        """Read a cursor; a new one if there is none. Raises ClusterError for a file that is no cursor."""
        if not path.exists():
            return cls()
        values = read_yaml(path)  # JSON is YAML, and this names what is wrong with it
        expected = asdict(cls())
        is_cursor = values.keys() == expected.keys() and all(
            type(values[name]) is type(value) for name, value in expected.items()
        )
        if not is_cursor or values["version"] != VERSION:
            raise ClusterError(
                f"{path}: not a record of what a tracker has, version {VERSION}; remove it to begin a new run in the"
                " tracker"
            )
        return cls(**values)

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


@dataclass(frozen=True, kw_only=True)
class Target:
    """The run that a tracker is opened for. `folder` is where the tracker's own files go by default."""

    id: str
    name: str
    folder: Path
    configuration: Mapping[str, Any]
    is_configuration_new: bool
