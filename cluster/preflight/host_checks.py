"""Judge the facts of all hosts: code and packages, limits, names, caches, the run's folder, files, clocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cluster.preflight.findings import (
    MISSING,
    Finding,
    Hosts,
    Problem,
    answered,
    differing,
    failure,
    judge_each,
    odd_hosts,
    or_ok,
    warning,
)
from cluster.wording import count_of

OPEN_FILES, OPEN_FILES_LEAST = 4096, 1024  # shards, checkpoints and a connection to each other rank
SHARED_MEMORY, SHARED_MEMORY_LEAST = 1 << 30, 64 << 20  # NCCL's buffers between the ranks of a host; heartbeats
FREE_FILES = 10_000
SKEW_S, SKEW_MOST_S = 2.0, 30.0
MUST_BE_EQUAL = ("code", "torch", "deepspeed", "transformers")
NETWORK_FILESYSTEMS = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "glusterfs", "afs", "panfs", "wekafs")
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def check_code(hosts: Hosts) -> list[Finding]:
    """Compare the code, the packages and Python of all hosts."""
    answers = answered("code", hosts)
    found = list(judge_each("code", hosts, lambda facts: ()))
    for name in next(iter(answers.values()), {}):
        values = {host: facts[name] for host, facts in answers.items()}
        if name != "commit" and (text := differing(values)):
            must = name in MUST_BE_EQUAL
            found.append(
                Finding(
                    check="code",
                    level="failure" if must else "warning",
                    odd=odd_hosts(values),
                    found=f"{'Shardline' if name == 'code' else name} differs: {text}",
                    expected=f"the same {name} on all hosts",
                    next_step="start from one checkout and one environment on a shared disk, or copy them again",
                )
            )
    facts = next(iter(answers.values()), {"commit": "", "code": "", "torch": ""})
    return or_ok("code", found, f"commit {facts['commit'][:12]}, code {facts['code']}, torch {facts['torch']}")


def check_limits(hosts: Hosts) -> list[Finding]:
    """Judge what the kernel and the site allow this process."""
    first: dict[str, Any] | None = next(iter(answered("limits", hosts).values()), None)
    ok = "" if first is None else f"open files {unlimited(first['open_files'])}, /dev/shm {shm_size(first)}"
    return or_ok("limits", judge_each("limits", hosts, judge_limits), ok)


def judge_limits(facts: dict[str, Any]) -> Iterator[Problem]:
    yield from judge_open_files(facts["open_files"], facts["open_files_hard"])
    if facts["core_bytes"] != 0:
        yield warning(
            f"a rank that crashes writes a core of up to {bytes_of(facts['core_bytes'])}",
            "no cores: each is as large as the rank's memory",
            "ulimit -c 0",
        )
    if facts["file_bytes"] is not None:
        yield failure(
            f"no file may become larger than {bytes_of(facts['file_bytes'])}", "no limit", "ulimit -f unlimited"
        )
    if facts["has_infiniband"] and facts["locked_bytes"] is not None:
        yield failure(
            f"locked memory is limited to {bytes_of(facts['locked_bytes'])} on a host with InfiniBand",
            "unlimited: NCCL registers its buffers",
            "ulimit -l unlimited; under Slurm: PropagateResourceLimitsExcept=MEMLOCK",
        )
    yield from judge_shared_memory(facts)


def judge_open_files(soft: int | None, hard: int | None) -> Iterator[Problem]:
    if soft is None or soft >= OPEN_FILES:
        return
    can_raise = hard is None or hard >= OPEN_FILES
    problem = failure if soft < OPEN_FILES_LEAST else warning
    yield problem(
        f"{soft:,} open files are allowed",
        f"{OPEN_FILES:,} or more",
        f"ulimit -n {OPEN_FILES}" if can_raise else f"ask the administrator: at most {hard:,} can be set here",
    )


def judge_shared_memory(facts: dict[str, Any]) -> Iterator[Problem]:
    """Yield a problem about /dev/shm: too small, or full of what others have left."""
    total, free = facts["shared_memory_bytes"], facts["shared_memory_free_bytes"]
    if min(total, free) >= SHARED_MEMORY:
        return
    problem = failure if free < SHARED_MEMORY_LEAST else warning
    remedy = "in a container: --shm-size=8g or --ipc=host; else mount -o remount,size=8G /dev/shm"
    yield problem(
        f"/dev/shm has {bytes_of(free)} free of {bytes_of(total)}",
        f"{bytes_of(SHARED_MEMORY)} free for the ranks of a host to exchange data",
        remedy if total < SHARED_MEMORY else "remove what ended processes have left there",
    )


def check_name(hosts: Hosts) -> list[Finding]:
    """Judge whether the other hosts can reach each host at what its own name resolves to."""
    answers = answered("name", hosts)
    is_alone = len(hosts) == 1
    ok = "; ".join(f"{facts['name']}: {', '.join(facts['addresses'])}" for facts in list(answers.values())[:2])
    return or_ok("name", judge_each("name", hosts, lambda facts: judge_name(facts, is_alone)), ok or "alone")


def judge_name(facts: dict[str, Any], is_alone: bool) -> Iterator[Problem]:
    for variable, value in facts["set"].items():
        names = [name.lstrip("^=").split(":")[0] for name in value.split(",")]
        if variable in INTERFACES and not value.startswith("^") and not has_interface(names, facts["interfaces"]):
            yield failure(
                f"{variable}={value}, and there is no such interface",
                f"one of {', '.join(facts['interfaces'])}",
                f"set {variable} in launch/site.env, for each host if their interfaces differ",
            )
    is_outside = any(not address.startswith("127.") for address in facts["addresses"])
    if is_alone or is_outside or "GLOO_SOCKET_IFNAME" in facts["set"]:
        return
    resolved = f"resolves to {', '.join(facts['addresses'])}" if facts["addresses"] else "does not resolve"
    suggested = facts["suggested"]
    problem = warning if suggested else failure  # the ranks of launch/train.sh find that interface too
    yield problem(
        f"its own name, {facts['name']}, {resolved}: where nothing else is set, gloo offers the other hosts an address"
        " that they cannot reach",
        "the address of the network that the hosts share",
        (f"nothing under Slurm: launch/train.sh uses {suggested}; elsewhere " if suggested else "")
        + f"export GLOO_SOCKET_IFNAME={suggested or 'INTERFACE'} in launch/site.env, or correct /etc/hosts",
    )


def has_interface(names: Sequence[str], interfaces: dict[str, str]) -> bool:
    return any(interface.startswith(name) for name in names for interface in interfaces)


def check_caches(hosts: Hosts) -> list[Finding]:
    """Judge where compiled kernels are kept: hosts that share such a folder overwrite and wait for one another."""
    first: dict[str, Any] = next(iter(answered("caches", hosts).values()), {})
    ok = ", ".join(f"{name} on {facts['filesystem']}" for name, facts in first.items())
    return or_ok("caches", judge_each("caches", hosts, judge_caches), ok)


def judge_caches(facts: dict[str, Any]) -> Iterator[Problem]:
    for name, cache in facts.items():
        if is_network(cache["filesystem"]):
            yield warning(
                f"{name} is {cache['path']}, on {cache['filesystem']}",
                "a local disk of each host: ranks that compile in one shared folder wait for one another's locks",
                f"export {name}=/tmp/$USER/{name.split('_')[0].lower()} in launch/site.env",
            )


def is_network(filesystem: str) -> bool:
    return filesystem.startswith(NETWORK_FILESYSTEMS)


def check_folder(hosts: Hosts, room_bytes: int | None, unseen: Sequence[str] = ()) -> list[Finding]:
    """Judge the run's folder: shared by all hosts, writable, with room for what the checkpoints still need.

    `unseen` are the hosts whose file the first host does not see, though they could write it.
    """
    answers = answered("folder", hosts)
    first: dict[str, Any] | None = next((facts for facts in answers.values() if "free_bytes" in facts), None)
    shared = f", shared by {len(hosts)} hosts" if len(hosts) > 1 else ""
    needed = (
        "how much checkpoints need is known after prepare" if room_bytes is None else f"{bytes_of(room_bytes)} needed"
    )
    ok = "" if first is None else f"writable{shared}, on {first['filesystem']}; {free_of(first)} free, {needed}"
    found = list(judge_each("folder", hosts, lambda facts: judge_folder(facts, room_bytes)))
    if unseen:
        path = answers[unseen[0]]["path"]
        problem = not_shared(path, "a file that it wrote there is not seen by the first host")
        found.append(Finding(check="folder", hosts=tuple(unseen), **vars(problem)))
    return or_ok("folder", found, ok)


def judge_folder(facts: dict[str, Any], room_bytes: int | None) -> Iterator[Problem]:
    path = facts["path"]
    if not facts["is_seen"]:
        yield not_shared(path, "a folder that the first host made there is not seen")
        return
    if facts["problem"] is not None:
        yield failure(
            f"{path} cannot be written to: {facts['problem']}", "a writable folder", "set another `folder` in the YAML"
        )
        return
    if room_bytes is not None and facts["free_bytes"] < room_bytes:
        yield failure(
            f"{path} has {free_of(facts)} free; the checkpoints still need {bytes_of(room_bytes)}",
            "room for all checkpoints that are kept at once",
            "make room, lower train.keep_last, or set another `folder` in the YAML",
        )
    if facts["free_files"] is not None and facts["free_files"] < FREE_FILES:
        yield warning(
            f"{path}: the disk has room for {count_of(facts['free_files'], 'more file')}",
            f"{FREE_FILES:,} or more",
            "remove files there, or set another `folder` in the YAML",
        )


def not_shared(path: str, why: str) -> Problem:
    return failure(
        f"{path} is not shared: {why}",
        "one folder that all hosts see",
        "set `folder` in the YAML to a path on the shared disk, and see that this host has mounted it",
    )


def check_files(hosts: Hosts) -> list[Finding]:
    """Judge whether every host has the model and the prepared data, the same ones, without the network."""
    found = list(judge_each("files", hosts, judge_model))
    answers = answered("files", hosts)
    fetching = {host for host, facts in answers.items() if will_fetch(facts)}
    if any(facts["is_local"] for facts in answers.values()):  # a name that is a folder somewhere is meant as one
        fetching = set()
    for key, what in (("model_digest", "the model"), ("data_digest", "the prepared data")):
        values = {
            host: (facts[key] or MISSING)[:12]
            for host, facts in answers.items()
            if key != "model_digest" or host not in fetching
        }
        if text := differing(values):
            found.append(
                Finding(
                    check="files",
                    level="failure",
                    odd=odd_hosts(values),
                    found=f"{what} differs: {text}",
                    expected="the same files on all hosts",
                    next_step="keep them on the shared disk, or copy them to every host again",
                )
            )
    return or_ok("files", found, files_text(next(iter(answers.values()), None)))


def will_fetch(facts: dict[str, Any]) -> bool:
    """Return whether the job fetches the model on this host, which has a cache of its own that does not hold it yet."""
    return facts["model"] is not None and facts["model_digest"] is None and not facts["is_offline"]


def judge_model(facts: dict[str, Any]) -> Iterator[Problem]:
    if facts["model"] is None or facts["model_digest"] is not None:
        return
    if facts["is_local"]:
        yield failure(
            f"model.path: {facts['model']} holds no config.json here",
            "a model's folder that every host sees",
            "correct model.path, or mount that disk on this host",
        )
        return
    problem = failure if facts["is_offline"] else warning
    yield problem(
        f"{facts['model']} is not in the Hub's cache ({facts['cache']}),"
        f" and {'HF_HUB_OFFLINE is set' if facts['is_offline'] else 'would be fetched by the job'}",
        "a model that is there before the job starts",
        f"hf download {facts['model']} where there is a network, with HF_HOME on the shared disk",
    )


def files_text(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return ""
    model = "no model to fetch" if facts["model"] is None else f"model {facts['model']} is here"
    data = "data is prepared" if facts["data_digest"] else f"data is not prepared yet ({facts['manifest']})"
    return f"{model}; {data}"


def check_clocks(skews_s: dict[str, float]) -> list[Finding]:
    """Compare clocks: `skews_s` is by how many seconds each host's clock is ahead of the first host's."""
    found = []
    for host, skew in skews_s.items():
        if abs(skew) > SKEW_S:
            found.append(
                Finding(
                    check="clocks",
                    hosts=(host,),
                    level="failure" if abs(skew) > SKEW_MOST_S else "warning",
                    found=f"its clock is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} the first host's",
                    expected=f"at most {SKEW_S:g} s: times in logs and of heartbeats are compared",
                    next_step="have its time service repaired: chronyc tracking, or timedatectl",
                )
            )
    largest = max((abs(skew) for skew in skews_s.values()), default=0.0)
    return or_ok("clocks", found, f"within {max(largest, 0.1):.1f} s of one another")


def unlimited(limit: int | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"


def shm_size(facts: dict[str, Any]) -> str:
    return bytes_of(facts["shared_memory_bytes"])


def free_of(facts: dict[str, Any]) -> str:
    return bytes_of(facts["free_bytes"])


def bytes_of(number: int | None) -> str:
    """Return a size as people read it."""
    if number is None:
        return "any size"
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
