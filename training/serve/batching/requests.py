"""A request on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from training.generate.sampling import Sampling
from training.serve.batching.choosing import Chooser


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a request ended: `stop` by a stop token, `length` by its token limit, `time` by its deadline, or `failed`."""

    reason: str
    message: str = ""


Event = int | Ended  # a new token, or the end


@dataclass(eq=False, kw_only=True)
class Request:
    """A prompt that is being answered.

    `deliver` is called in the engine's thread with each event, and must return at once. `deadline` is in the seconds of
    `time.monotonic`. The engine writes `tokens` and `failures`; whoever reads the answer sets `is_cancelled`.
    """

    ids: list[int]
    stops: list[int]
    sampling: Sampling
    deadline: float
    deliver: Callable[[Event], None]
    tokens: list[int] = field(default_factory=list)
    chooser: Chooser | None = None
    failures: int = 0
    is_cancelled: bool = False
