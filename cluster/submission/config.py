"""The `cluster` section of a run's YAML: what `shardline submit` asks Slurm for."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from cluster.config_loading import Section
from cluster.wording import count_of

MANY_HOSTS = ("prepare", "train")
ONE_HOST = ("export", "evaluate")
STAGES = (*MANY_HOSTS, *ONE_HOST)
MAIL_EVENTS = Literal["BEGIN", "END", "FAIL", "REQUEUE", "INVALID_DEPEND", "TIME_LIMIT_90", "ALL"]

OURS = (  # options that decide how the jobs of a chain find each other and their logs
    *("--array", "--dependency", "--error", "--job-name", "--kill-on-invalid-dep", "--output", "--parsable"),
    *(
        "--chdir",
        "--export",
        "--export-file",
        "--test-only",
        "--wait",
        "--wrap",
        "-a",
        "-d",
        "-D",
        "-e",
        "-J",
        "-o",
        "-W",
    ),
)
KEYS_OF = {  # options that have a key, which each stage can override
    **{"--partition": "partition", "-p": "partition", "--account": "account", "-A": "account"},
    **{"--qos": "qos", "-q": "qos", "--nodes": "nodes", "-N": "nodes", "--time": "time", "-t": "time"},
    **{"--constraint": "constraint", "-C": "constraint", "--reservation": "reservation", "--mem": "memory"},
    **{"--gpus-per-node": "gpus_per_node", "--exclusive": "exclusive", "--mail-user": "mail", "--mail-type": "mail"},
    "--container-image": "container",
}
SHORTEST_PREFIX = 5  # sbatch takes `--dep` for --dependency


def checked(pattern: str, expected: str) -> AfterValidator:
    """Return a check of a text against a pattern, with an error in words."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}, got {value!r}")
        return value

    return AfterValidator(check)


def as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def is_option(word: str, long: str, short: str) -> bool:
    """Return whether a word is this option of sbatch, which takes `--exclud` for --exclude."""
    name = word.partition("=")[0]
    return len(name) >= SHORTEST_PREFIX and long.startswith(name) if name.startswith("--") else name.startswith(short)


def check_option(option: str) -> str:
    name = option.partition("=")[0]
    if not re.fullmatch(r"-[A-Za-z].*|--[a-z][a-z-]*(=.*)?", option):
        raise ValueError(f"expected an option of sbatch as one text, such as '--exclude=node7', got {option!r}")
    short = name[:2] if not name.startswith("--") else name
    if short in KEYS_OF:
        raise ValueError(f"{option!r} has a key of its own: {KEYS_OF[short]}")
    is_prefix = len(name) >= SHORTEST_PREFIX and any(own.startswith(name) for own in OURS)
    if short in OURS or is_prefix:
        raise ValueError(f"{option!r} is decided by `shardline submit`; remove it")
    return option


Word = Annotated[str, checked(r"[^\s-]\S*", "a text without spaces")]
Gpus = Annotated[
    str, BeforeValidator(as_text), checked(r"([A-Za-z][\w.-]*:)?\d{1,3}", "a number, or kind:number as in h100:8")
]
Memory = Annotated[str, BeforeValidator(as_text), checked(r"all|[1-9]\d*[KMGT]", "a size such as 200G, or all")]
Time = Annotated[
    str,
    BeforeValidator(as_text),
    checked(r"(\d+-)?\d{1,3}:[0-5]\d:[0-5]\d", "'hours:minutes:seconds' or 'days-hours:minutes:seconds'"),
]
Option = Annotated[str, AfterValidator(check_option)]
Mount = Annotated[str, checked(r"/[^:,\s]*(:/[^:,\s]*(:[\w+]+)?)?", "/here, /here:/inside or /here:/inside:ro")]


class Mail(Section):
    """Mails that Slurm sends."""

    user: Word
    """The address."""
    events: list[MAIL_EVENTS] = Field(default=["END", "FAIL"], min_length=1)
    """What is mailed."""


class Container(Section):
    """The container that Python runs in. The job's script itself runs on the host, where Slurm's commands are."""

    image: str = Field(min_length=1)
    """pyxis: a `.sqsh` file or an image of a registry. Apptainer: a `.sif` file, or an address such as
    `docker://...`."""
    runtime: Literal["pyxis", "apptainer"]
    """pyxis: by options of srun, on clusters with the enroot/pyxis plugin. apptainer: by `apptainer exec`."""
    mounts: list[Mount] = Field(default=[])
    """Folders of the host, for corpora, models and caches. The checkout, the current folder and the run's folder are
    always mounted, where they are."""
    python: Word = "python3"
    """The Python inside of the image that has Shardline's requirements."""
    options: list[str] = Field(default=[])
    """More options: of srun with pyxis (`--no-container-mount-home`), of `apptainer exec` with Apptainer."""


class OneHost(Section):
    """What a job asks for; empty keys are those of `cluster`."""

    partition: Word | None = None
    """Slurm's partition; several with commas."""
    account: Word | None = None
    """Who is charged."""
    qos: Word | None = None
    """Quality of service."""
    gpus_per_node: Gpus | None = None
    """GPUs on each node, as a number or kind:number: `8`, `h100:8`. Of `cluster`, `train` uses all and `evaluate` one;
    `prepare` and `export` need none. `0`: none."""
    cpus_per_node: int | None = Field(default=None, ge=1)
    """CPUs on each node."""
    memory: Memory | None = None
    """Memory of each node: `200G`, or `all`."""
    exclusive: bool | None = None
    """Whether the job has its nodes for itself, with all of their CPUs."""
    time: Time | None = None
    """Time limit: hours:minutes:seconds, or days-hours:minutes:seconds. A training that reaches it saves a checkpoint
    and returns to the queue."""
    constraint: Word | None = None
    """Features that the nodes must have."""
    reservation: Word | None = None
    """The name of a reservation."""
    options: list[Option] = Field(default=[])
    """More options of sbatch, each as one text: `['--exclude=node7', '--licenses=scratch']`; those of a stage are
    added to those of `cluster`."""

    @model_serializer(mode="wrap")
    def without_empty_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not set, which are most keys, where a run's configuration is saved."""
        return {name: value for name, value in serialize(self).items() if value not in (None, [], {})}


class ManyHosts(OneHost):
    """What a job asks for; empty keys are those of `cluster`."""

    nodes: int | None = Field(default=None, ge=1)
    """Nodes of `prepare` and of `train`; `export` and `evaluate` use one. Default: 1."""
    min_nodes: int | None = Field(default=None, ge=1)
    """The job starts as soon as this many nodes are free, on at most `nodes` of them. Default: `nodes`."""
    ranks_per_node: int | None = Field(default=None, ge=1)
    """Without GPUs: the ranks of a training on each node; it divides `cpus_per_node`. Default: 1."""


class ClusterConfig(ManyHosts):
    """The Slurm jobs of `shardline submit`: what each one asks for. It has no effect on a run's numbers."""

    mail: Mail | None = None
    container: Container | None = None
    prepare: ManyHosts = ManyHosts()
    train: ManyHosts = ManyHosts()
    export: OneHost = OneHost()
    evaluate: OneHost = OneHost()

    @model_validator(mode="after")
    def check_stages(self) -> Self:
        for stage in STAGES:
            job_request(self, stage)
        return self


class JobRequest(ManyHosts):
    """What the job of one stage asks for: its own keys, else those of `cluster`."""

    @property
    def gpus(self) -> int:
        return int((self.gpus_per_node or "0").rpartition(":")[2])

    @property
    def ranks(self) -> int:
        """The ranks of a training on all nodes."""
        return (self.nodes or 1) * (self.gpus or self.ranks_per_node or 1)


def job_request(cluster: ClusterConfig, stage: str) -> JobRequest:
    """Return what a stage's job asks for. Raises ValueError if its keys do not go together."""
    common = {name: getattr(cluster, name) for name in ManyHosts.model_fields}
    section = getattr(cluster, stage)
    own = {name: value for name, value in section if value is not None}
    if stage in ONE_HOST or ("nodes" in own and "min_nodes" not in own):
        common |= {"nodes": None, "min_nodes": None}
    if stage != "train":
        common |= {"gpus_per_node": one_gpu(cluster) if stage == "evaluate" else None, "ranks_per_node": None}
    request = JobRequest.model_construct(**{**common, **own, "options": [*cluster.options, *section.options]})
    check_nodes(request)
    if stage == "train":
        check_ranks(request)
    elif request.ranks_per_node:
        raise ValueError(f"{stage}.ranks_per_node: is a key of trainings; remove it")
    return request


def one_gpu(cluster: ClusterConfig) -> str | None:
    """Return one of the GPUs that trainings use."""
    kind, colon, count = (cluster.train.gpus_per_node or cluster.gpus_per_node or "0").rpartition(":")
    return f"{kind}{colon}1" if int(count) else None


def check_nodes(request: JobRequest) -> None:
    if (request.min_nodes or 1) > (request.nodes or 1):
        nodes = f"nodes: {request.nodes}" if request.nodes else "nodes, which is 1 unless it is set"
        raise ValueError(f"min_nodes: {request.min_nodes} is more than {nodes}")


def check_ranks(request: JobRequest) -> None:
    """Raise ValueError if ranks and CPUs of a node do not go together."""
    ranks, cpus = request.gpus or request.ranks_per_node or 1, request.cpus_per_node
    if request.gpus and request.ranks_per_node:
        raise ValueError("ranks_per_node: with GPUs there is one rank for each; remove it, or gpus_per_node")
    if cpus is not None and cpus < ranks:
        raise ValueError(f"cpus_per_node: {cpus} for {count_of(ranks, 'rank')} on a node; a rank needs one or more")
    if cpus is not None and not request.gpus and cpus % ranks:
        raise ValueError(f"cpus_per_node: {cpus} is not a multiple of ranks_per_node: {ranks}")
