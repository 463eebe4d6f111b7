"""Decide what a tracker gets next, from the journal and its cursor. Touches no file and no tracker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from cluster.errors import ClusterError
from cluster.wording import count_of
from training.reporting.incidents import described
from training.tracking.journal_tail import REWINDING
from training.tracking.records import Cursor, News, Note, Point


@dataclass
class StepTimes:
    """When the steps were taken: the lines of metrics say only how long each took, the events when an attempt began."""

    began: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])  # of attempts: first step, time in ms
    current: tuple[int, int] = (0, 0)
    passed_ms: float = 0.0
    last_step: int = 0

    def note(self, event: Mapping[str, Any]) -> None:
        if event["event"] in REWINDING:
            self.began.append((event["step"], milliseconds(event)))

    def of(self, line: Mapping[str, Any]) -> int:
        """Return the time of a line in milliseconds since 1970. Lines must come in their order."""
        attempt = next(one for one in reversed(self.began) if one[0] < line["step"])
        if attempt is not self.current or line["step"] <= self.last_step:  # the file is read again from its beginning
            self.current, self.passed_ms = attempt, 0.0
        self.last_step = line["step"]
        self.passed_ms += 1000 * (line.get("step_s", 0.0) + line.get("save_s", 0.0))
        return attempt[1] + int(self.passed_ms)


@dataclass
class Selection:
    """What of a journal, which is read from its beginning, a tracker has not got yet.

    A tracker that can purge gets the steps that a resumed run takes again a second time, instead of the first ones.
    Another one gets each step once: what is taken again after a kill has the same loss. Only after a rollback, where
    other rows are trained, the steps are sent again to both.
    """

    cursor: Cursor
    can_purge: bool
    seen: int = 0
    times: StepTimes = field(default_factory=StepTimes)

    def check_complete(self) -> None:
        """Raise ClusterError if the journal, read to its end, has fewer events than the tracker has."""
        if self.seen < self.cursor.events:
            raise ClusterError(
                f"the tracker has {self.cursor.events} events of this run, and attempts.jsonl has {self.seen}: it is"
                " not the journal that was sent; remove the tracker's .json file in trackers/ to begin a new run there"
            )

    def next(self, events: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> tuple[News, Cursor]:
        """Return what to send, and the cursor once it is sent."""
        before = self.cursor
        rewound: int | None = None
        validations: list[Point] = []
        notes: list[Note] = []
        for event in events:
            self.seen += 1
            self.times.note(event)
            if self.seen <= before.events:
                continue
            if event["event"] in REWINDING:
                validations = [point for point in validations if point.step <= event["step"]]
                if self.is_resent_after(event):
                    rewound = event["step"] if rewound is None else min(rewound, event["step"])
            validations += self.validation_of(event)
            notes += self.note_of(event)
        limit = before.step if rewound is None else min(before.step, rewound)
        is_rewound = rewound is not None and rewound < before.step
        steps = [point for point in self.points(lines) if point.step > limit]
        validations = list({point.step: point for point in validations}.values())
        last_validation = before.validation if rewound is None else min(before.validation, rewound)
        validations = [point for point in validations if point.step > last_validation]
        after = replace(
            before,
            events=max(self.seen, before.events),
            step=max([limit, *(point.step for point in steps)]),
            validation=max([last_validation, *(point.step for point in validations)]),
        )
        return News(steps=steps, validations=validations, notes=notes, rewound_to=limit if is_rewound else None), after

    def is_resent_after(self, event: Mapping[str, Any]) -> bool:
        return self.can_purge or event["event"] == "rollback"

    def points(self, lines: Iterable[Mapping[str, Any]]) -> Iterable[Point]:
        for line in lines:
            values = {name: value for name, value in line.items() if type(value) in (int, float) and name != "step"}
            yield Point(step=line["step"], time_ms=self.times.of(line), values=values)

    def validation_of(self, event: Mapping[str, Any]) -> list[Point]:
        if event["event"] != "validation":
            return []
        values = {"validation_loss": event["loss"]}
        return [Point(step=event["step"], time_ms=milliseconds(event), values=values)]

    def note_of(self, event: Mapping[str, Any]) -> list[Note]:
        text = text_of(event)
        step = event.get("failed_step", event.get("step", 0))
        return [Note(number=self.seen, step=step, time_ms=milliseconds(event), text=text)] if text else []


def milliseconds(event: Mapping[str, Any]) -> int:
    return int(datetime.fromisoformat(event["time"]).timestamp() * 1000)


def text_of(event: Mapping[str, Any]) -> str:
    """Return an event in words; empty for one that is routine."""
    match event["event"]:
        case "start":
            return f"started after step {event['step']:,} on {count_of(event['world_size'], 'rank')}"
        case "end":
            return f"ended after step {event.get('step', 0):,}: {event['reason']} (exit code {event['exit_code']})"
    incident = described(dict(event))
    if incident is None:
        return ""
    return f"step {incident.steps_text}: {incident.what}" if incident.steps else incident.what
