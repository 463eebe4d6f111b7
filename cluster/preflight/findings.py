"""What a check has found: one line that is ok, or what is, what should be, and what to do next."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cluster.errors import EXIT_DONE, EXIT_USER_ACTION
from cluster.wording import count_of

Level = Literal["ok", "warning", "failure"]
Facts = dict[str, Any]  # what each probe of one host has answered, by the probe's name
Hosts = Mapping[str, Facts]

TITLES = {"ok": "ok", "warning": "WARNING", "failure": "FAILURE"}
INDENT = 20
MISSING, NOT_INSTALLED = ABSENT = ("missing", "not installed")  # values that hosts are compared by
NAMED_HOSTS = 4  # of more, the first ones are named and the rest are counted


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One result of a check. `hosts` are those it is about; none if it is about all of them.

    `odd` are the few hosts that differ from what most of all hosts have in common, where the check compares them.
    """

    check: str
    level: Level
    found: str
    expected: str = ""
    next_step: str = ""
    hosts: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """What is wrong with one host."""

    level: Level
    found: str
    expected: str
    next_step: str


def failure(found: str, expected: str, next_step: str) -> Problem:
    return Problem("failure", found, expected, next_step)


def warning(found: str, expected: str, next_step: str) -> Problem:
    return Problem("warning", found, expected, next_step)


Judge = Callable[[Any], Iterable[Problem]]


def judge_each(check: str, hosts: Hosts, judge: Judge) -> Iterator[Finding]:
    """Yield what `judge` says about the answer of each host's probe of this name; hosts with the same words share one.

    A probe that failed or did not answer in time is a failure by itself, so that a check never passes unseen.
    """
    seen: dict[Problem, list[str]] = {}
    for host, facts in hosts.items():
        for problem in problems_of(check, facts, judge):
            seen.setdefault(problem, []).append(host)
    for problem, names in seen.items():
        yield Finding(check=check, hosts=tuple(names), **asdict(problem))


def problems_of(check: str, facts: Facts, judge: Judge) -> Iterable[Problem]:
    answer = facts.get(check)
    if answer is None:
        return [failure("this check did not run", "facts of every host", "compare reports of one version of Shardline")]
    if error := error_of(answer):
        return [failure(error, "an answer", "run `shardline doctor` on that host; its driver or a disk may hang")]
    return judge(answer)


def error_of(answer: Any) -> str | None:
    """Return why a probe has no facts; None if it has."""
    return answer["error"] if isinstance(answer, dict) and set(answer) == {"error"} else None


def answered(check: str, hosts: Hosts) -> dict[str, Any]:
    """Return the facts of one probe by host, of those hosts that have them."""
    return {host: facts[check] for host, facts in hosts.items() if check in facts and not error_of(facts[check])}


def or_ok(check: str, findings: Iterable[Finding], found: str) -> list[Finding]:
    """Return the findings, or, without any, one that says what was found to be right."""
    return list(findings) or [Finding(check=check, level="ok", found=found)]


def differing(values: Mapping[str, str]) -> str | None:
    """Return which hosts have which value, the rarest first; None if all have the same."""
    by_value: dict[str, list[str]] = {}
    for host, value in values.items():
        by_value.setdefault(value, []).append(host)
    if len(by_value) < 2:
        return None
    rarest = sorted(by_value.items(), key=lambda item: (len(item[1]), item[1]))
    return "; ".join(f"{named_hosts(hosts)}: {value}" for value, hosts in rarest)


def odd_hosts(values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the hosts without the value that more than half of all have; none if there is no such value.

    Where some have nothing at all and the others agree, it is those that have nothing.
    """
    having = {value for value in values.values() if value not in ABSENT}
    if len(having) == 1 and (lacking := tuple(host for host, value in values.items() if value in ABSENT)):
        return lacking
    counts = Counter(values.values())
    return next(
        (
            tuple(host for host, its in values.items() if its != value)
            for value, count in counts.items()
            if 2 * count > len(values)
        ),
        (),
    )


def named_hosts(hosts: Sequence[str]) -> str:
    """Return the names of hosts, the first few of many."""
    if len(hosts) <= NAMED_HOSTS:
        return ", ".join(hosts)
    return f"{', '.join(hosts[:NAMED_HOSTS])} and {len(hosts) - NAMED_HOSTS} more"


def exit_code_of_findings(findings: Iterable[Finding]) -> int:
    """Return 2 if anything fails, as a person must act; warnings let a run start."""
    return EXIT_USER_ACTION if any(finding.level == "failure" for finding in findings) else EXIT_DONE


def as_records(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as JSON values."""
    return [{**asdict(one), "hosts": list(one.hosts), "odd": list(one.odd)} for one in findings]


def as_text(findings: Sequence[Finding], hosts: int, took_s: float, columns: int = 80) -> str:
    """Return the findings as they are printed, one line a check where nothing is wrong."""
    lines = [line for finding in findings for line in finding_lines(finding, hosts, columns)]
    levels = [finding.level for finding in findings]
    counts = [count_of(levels.count("failure"), "failure"), count_of(levels.count("warning"), "warning")]
    checks = count_of(len({finding.check for finding in findings}), "check")
    lines.append(f"{count_of(hosts, 'host')}, {checks} in {took_s:.1f} s: {', '.join(counts)}")
    return "\n".join(lines)


def finding_lines(finding: Finding, hosts: int, columns: int) -> Iterator[str]:
    about = f"{named_hosts(finding.hosts)}: " if finding.hosts and hosts > 1 else ""
    yield from wrapped(f"{TITLES[finding.level]:<8} {finding.check:<10} ", f"{about}{finding.found}", columns)
    for label, text in (("expected: ", finding.expected), ("next: ", finding.next_step)):
        if text:
            yield from wrapped(" " * INDENT + label, text, columns)


def wrapped(first: str, text: str, columns: int) -> list[str]:
    indent = " " * INDENT
    return textwrap.wrap(
        text, columns, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]
