"""Start this host's ranks of a run that the same command starts on several hosts, again after failures, to one end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from cluster.environment import HOSTS
from cluster.errors import EXIT_FAILED, ShardlineError
from cluster.hosts.first import FirstHost
from cluster.hosts.meeting import Ended, Hello, Meeting
from cluster.hosts.other import OtherHost
from cluster.hosts.peer import stopped_code
from cluster.launching.local_launcher import RankNews, ServerProcess, run_ranks
from cluster.launching.stop_request import remembered_signals

log = logging.getLogger(__name__)


def run_on_hosts(
    command: Sequence[str],
    hello: Hello,
    note: Callable[[], None],
    *,
    restart: Callable[[bool], bool],
    news: RankNews,
    server: ServerProcess | None = None,
) -> int:
    """Run `command` as this host's ranks; return the exit code that all hosts end with.

    The first host calls `note` before each start, once all hosts are there, and asks `restart` after a failure whether
    there is another one; its argument is whether all hosts are still there. Where this host is the only one, nothing is
    waited for.
    """

    def decide(ended: Ended) -> bool:
        """Record why the ranks have failed; return whether they start again. Called on the first host."""
        if ended.code != EXIT_FAILED or asked:  # who is killed after a stop was asked for did not save in time
            return False
        if ended.cause and news.note_cause(ended.cause):
            where = f"; the ranks' logs: {news.log_of('*')}" if news.log_of else ""
            log.warning("%s%s", ended.cause, where)
        return restart(ended.are_all_there)

    with remembered_signals() as asked, closing(meeting_of(hello, asked)) as meeting:
        while True:
            met = meeting.meet(note)
            if isinstance(met, int):
                return met
            variables = {HOSTS: " ".join(met.hosts)}
            seats, causes = replace(met.seats, elsewhere=meeting.elsewhere, asked=asked), list[str]()
            own = replace(news, note_cause=causes.append)
            try:
                code = stopped_code(asked) or run_ranks(
                    command, hello.ranks, variables, seats=seats, news=own, server=server
                )
            except (ShardlineError, OSError) as error:
                cause = f"the launcher on {hello.name} failed: {error}"
                if not hello.place.number:
                    news.note_cause(cause)
                meeting.leave(cause)
                raise
            total, again = meeting.finish(code, causes, decide)
            if not again:
                return total
            log.warning("restarting the ranks")


def meeting_of(hello: Hello, asked: Sequence[int]) -> Meeting:
    """Return this host's side of the meeting. Raises ClusterError."""
    return OtherHost(hello, asked) if hello.place.number else FirstHost(hello, asked)
