"""What the preflight at the start of a job decides: which hosts to leave out, or why no host would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.preflight.findings import Facts, Finding, Hosts, error_of, named_hosts

HOST_FAULTS = ("gpus", "torch")  # faults of a machine; another one may be free of them
SETTINGS = ("code", "folder", "files")  # of the site or the run: wrong on one host if another one has them right
NO_ANSWER = "no answer within"  # how `deadline.answers` and the probes tell of a driver or a disk that hangs
FACTS = (NO_ANSWER, "it ended without an answer", "OSError: ", "PermissionError: ")  # errors that are about the host


@dataclass(frozen=True)
class Verdict:
    """`broken` and `silent` hosts have their reasons; `refusal` is what is wrong with all hosts at once.

    A silent host has given no facts, or not those of a driver or a disk: it may be broken, or only slow.
    """

    broken: Mapping[str, str] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""


def decide(findings: Iterable[Finding], hosts: Sequence[str], silent: Mapping[str, str]) -> Verdict:
    """Return what follows from the findings about `hosts`, all of the job.

    The same fault on all hosts is no host's: it refuses the job. So does a setting that is wrong on the only host, and
    a difference between hosts of which neither side has the majority. If all hosts are silent, nothing is known.
    """
    broken: dict[str, str] = {}
    refusals = []
    unheard = dict(silent)
    answered = {host for host in hosts if host not in silent}
    are_many = len(answered) > 1
    for finding in findings:
        if finding.level != "failure" or finding.check not in HOST_FAULTS + SETTINGS:
            continue
        about = finding.hosts or finding.odd
        if NO_ANSWER in finding.found:
            unheard.update(dict.fromkeys(about, f"{finding.check}: {finding.found}"))
            continue
        is_of_all = not about or (set(about) >= answered and (are_many or len(hosts) == 1))
        if is_of_all and (are_many or finding.check in SETTINGS):
            refusals.append(told(finding))
            continue
        for host in about:
            broken.setdefault(host, f"{finding.check}: {finding.found}; expected: {finding.expected}")
    if not refusals and are_many and set(broken) >= answered:
        refusals = [f"{host}: {reason}" for host, reason in broken.items()]
    if refusals:
        return Verdict(refusal="; ".join(refusals))
    return Verdict(broken=broken, silent={} if len(unheard) == len(hosts) else unheard)


def told(finding: Finding) -> str:
    """Return a finding in one line."""
    about = f"{named_hosts(finding.hosts)}: " if finding.hosts else ""
    return f"{finding.check}: {about}{finding.found}; expected: {finding.expected}; next: {finding.next_step}"


def of_working_checks(hosts: Hosts) -> tuple[dict[str, Facts], dict[str, dict[str, str]]]:
    """Return the facts without those of checks that broke by themselves, and why they did, by check and host.

    A check with a mistake in it says nothing about its host. One that got no answer does: a driver or a disk hangs; but
    to import torch can take minutes where a thousand hosts do so at once.
    """
    working: dict[str, Facts] = {}
    mistakes: dict[str, dict[str, str]] = {}
    for host, facts in hosts.items():
        working[host] = {}
        for check, answer in facts.items():
            error = error_of(answer)
            is_slow_import = check == "torch" and error is not None and error.startswith(NO_ANSWER)
            if error is None or (error.startswith(FACTS) and not is_slow_import):
                working[host][check] = answer
            else:
                mistakes.setdefault(check, {})[host] = error
    return working, mistakes
