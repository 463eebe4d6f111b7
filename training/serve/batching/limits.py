"""What one server does at most."""

from __future__ import annotations

from pydantic import Field

from cluster.config_loading import Section


class Limits(Section):
    """What one server does at most; a request beyond a limit is refused with the status code named here."""

    slots: int = Field(default=16, gt=0)
    """Requests that are answered at the same time."""
    queue: int = Field(default=64, ge=0)
    """Requests that wait for a slot; a further one gets 429 with Retry-After."""
    answer_tokens: int = Field(default=2048, gt=0)
    """Longest answer, in tokens; a request for more gets 400."""
    context_tokens: int = Field(default=4096, gt=1)
    """Longest prompt and answer together, in tokens; a request for more gets 400."""
    body_bytes: int = Field(default=1 << 20, gt=0)
    """Largest body of a request; a larger one gets 413 and is not read."""
    body_s: float = Field(default=30.0, gt=0)
    """Seconds in which a body has to arrive; a slower one gets 408."""
    request_s: float = Field(default=300.0, gt=0)
    """Seconds for one request, with its time in the queue. A request that has no token by then gets 504; an answer that
    has begun ends there."""
    grace_s: float = Field(default=30.0, ge=0)
    """Seconds that requests in flight get to finish once the server is asked to stop."""
