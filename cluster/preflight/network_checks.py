"""Judge the network between the hosts: does an all-reduce give the right sum, and is every link fast enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.preflight.findings import Finding, named_hosts, or_ok

Measured = Mapping[str, Mapping[str, Any]]  # what each host measured, in the order of their ranks


def check_network(
    hosts: Sequence[str], measured: Measured, problems: Mapping[str, str], floor_mb_per_s: float
) -> list[Finding]:
    """Judge what the hosts measured together; `problems` are those of hosts that did not end well."""
    if len(hosts) < 2:
        return [Finding(check="network", level="ok", found="one host: nothing to measure")]
    complete = [host for host in hosts if host in measured]
    found = list(lost_hosts(hosts, measured, problems))
    if wrong := [host for host in complete if not measured[host]["is_sum_right"]]:
        found.append(network_failure(wrong, "an all-reduce gave a wrong sum", "the sum of all hosts' numbers"))
    if len(complete) == len(hosts):
        links = {host: measured[host]["from_previous_mb_per_s"] for host in hosts}
        found += slow_findings(links, floor_mb_per_s)
    return or_ok("network", found, network_text(complete, measured))


def lost_hosts(hosts: Sequence[str], measured: Measured, problems: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a finding for each problem of a host that measured nothing, or whose NCCL did not come to an end."""
    without = {host: problems.get(host, "no answer") for host in hosts if host not in measured}
    for problem in sorted(set(without.values())):
        yield network_failure(
            [host for host, its in without.items() if its == problem],
            f"no all-reduce: {problem}",
            "an all-reduce of all hosts by gloo",
        )
    for host in (host for host in hosts if host in measured):
        nccl = measured[host].get("nccl")
        if nccl == "begun" or (isinstance(nccl, str) and nccl not in ("", "none")):
            why = problems.get(host, "it did not end") if nccl == "begun" else nccl
            yield network_failure([host], f"no all-reduce by NCCL: {why}", "an all-reduce of all hosts' first GPUs")


def network_failure(hosts: Sequence[str], found: str, expected: str) -> Finding:
    return Finding(
        check="network",
        level="failure",
        hosts=tuple(hosts),
        found=found,
        expected=expected,
        next_step="set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in launch/site.env to the network of all hosts",
    )


def slow_findings(links: Mapping[str, float], floor_mb_per_s: float) -> Iterator[Finding]:
    """Yield what is slower than the floor: the host that all slow links have in common, else each link's two hosts.

    `links` is how fast each host received from the one before it in a ring; all links were measured at once.
    """
    hosts = list(links)
    slow = {host for host, rate in links.items() if rate < floor_mb_per_s}
    before = {host: hosts[number - 1] for number, host in enumerate(hosts)}
    after = {earlier: later for later, earlier in before.items()}
    to_blame = [host for host in hosts if len(hosts) > 2 and {host, after[host]} <= slow]
    for host in to_blame:
        yield too_slow((host,), f"{max(links[host], links[after[host]]):,.0f} MB/s to and from it", floor_mb_per_s)
    receiving = [host for host in hosts if host in slow and not {host, before[host]} & set(to_blame)]
    for host in receiving[-1:] if len(hosts) == 2 else receiving:  # of two hosts, both links are the same cable
        yield too_slow((before[host], host), f"{links[host]:,.0f} MB/s from the first to the second", floor_mb_per_s)


def too_slow(hosts: tuple[str, ...], found: str, floor_mb_per_s: float) -> Finding:
    return Finding(
        check="network",
        level="failure",
        hosts=hosts,
        found=f"slow network: {found}",
        expected=f"{floor_mb_per_s:,.0f} MB/s or more, by gloo",
        next_step="choose the fast network by GLOO_SOCKET_IFNAME in launch/site.env, or submit with --exclude="
        f"{','.join(hosts)}; --network-floor MB_PER_S accepts another speed",
    )


def network_text(hosts: Sequence[str], measured: Measured) -> str:
    if not hosts:
        return ""
    slowest = min(hosts, key=lambda host: float(measured[host]["from_previous_mb_per_s"]))
    rate = measured[slowest]["from_previous_mb_per_s"]
    by_nccl = [measured[host]["nccl"] for host in hosts if isinstance(measured[host].get("nccl"), float)]
    nccl = f"; NCCL {min(by_nccl):,.0f} MB/s" if by_nccl else ""
    return (
        f"all-reduce of {len(hosts)} hosts is right; slowest link {rate:,.0f} MB/s, to {named_hosts([slowest])}{nccl}"
    )
