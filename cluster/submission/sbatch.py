"""The `sbatch` command of one job. Nothing here touches Slurm."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import ConfigError
from cluster.submission.config import ClusterConfig, Container, JobRequest, is_option, job_request

SRUN_OPTIONS = "SHARDLINE_SRUN_OPTIONS"  # words for each srun that starts Python
PYTHON = "SHARDLINE_PYTHON"  # the words that start Python on a node


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as it is submitted. `variables` are set for sbatch, which passes its environment on."""

    stage: str
    name: str
    options: list[str]
    script: list[str]
    variables: dict[str, str] = field(default_factory=dict)
    hint: str = ""
    """What else to do about a refusal than to correct the YAML."""

    def command(self, after: str | None = None) -> list[str]:
        """Return the command; the job starts once `after` has ended with 0, and is removed if it ends otherwise."""
        return ["sbatch", "--parsable", *dependency(after), *self.options, *self.script]

    def shell_line(self, after: str | None = None) -> str:
        """Return the command for a shell; `after` names the variable that holds the earlier job's id."""
        words = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        words += ["sbatch", "--parsable"]
        if after is not None:
            words += ['--dependency="afterok:${' + after + '%%;*}"', "--kill-on-invalid-dep=yes"]
        return f"{self.stage}=$({' '.join(words)} {shlex.join([*self.options, *self.script])})"


def dependency(after: str | None) -> list[str]:
    return [] if after is None else [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]


def make_job(
    cluster: ClusterConfig, stage: str, name: str, logs: Path, script: Sequence[str], folders: Sequence[Path]
) -> Job:
    """Return a stage's job, whose log is LOGS/NAME-JOB.log. A container sees these folders."""
    request = job_request(cluster, stage)
    variables = {} if cluster.container is None else container_variables(cluster.container, folders)
    options = [f"--job-name={name}", f"--output={file_pattern(logs)}/%x-%j.log", *size_options(request)]
    for option in ("partition", "account", "qos", "time", "constraint", "reservation"):
        value = getattr(request, option)
        options += [] if value is None else [f"--{option}={value}"]
    if variables:
        options.append("--export=ALL")  # SBATCH_EXPORT=NONE would lose them
    if cluster.mail is not None:
        options += [f"--mail-user={cluster.mail.user}", f"--mail-type={','.join(cluster.mail.events)}"]
    return Job(stage=stage, name=name, options=[*options, *request.options], script=list(script), variables=variables)


def excluding(options: Sequence[str], hosts: Iterable[str]) -> list[str]:
    """Return sbatch's options with these hosts excluded too: of several --exclude, Slurm takes the last one alone.

    They stay as they are if they name the job's nodes, as Slurm refuses an --exclude of one of them, or a file of nodes
    to exclude.
    """
    kept: list[str] = []
    nodes: list[str] = []
    words = iter(options)
    for word in words:
        if is_option(word, "--nodelist", "-w") or is_option(word, "--nodefile", "-F"):
            return list(options)
        if not is_option(word, "--exclude", "-x"):
            kept.append(word)
        elif "=" in word:
            nodes.append(word.partition("=")[2])
        else:
            nodes.append(word.removeprefix("-x").strip() if word.startswith("-x") and word != "-x" else next(words, ""))
    new = [host for host in hosts if host not in nodes]
    is_file = any("/" in value for value in nodes)
    return [*kept, f"--exclude={','.join([*nodes, *new])}"] if new and not is_file else list(options)


def size_options(request: JobRequest) -> list[str]:
    """Return the options for nodes, GPUs, CPUs and memory. With GPUs, launch/train.sh divides the CPUs itself."""
    most = request.nodes or 1
    least = request.min_nodes or most
    tasks = 1 if request.gpus else request.ranks_per_node or 1
    options = [f"--nodes={most}" if least >= most else f"--nodes={least}-{most}", f"--ntasks-per-node={tasks}"]
    if request.gpus:
        options.append(f"--gpus-per-node={request.gpus_per_node}")
    if request.cpus_per_node is not None:
        options.append(f"--cpus-per-task={request.cpus_per_node // tasks}")
    if request.memory is not None:
        options.append(f"--mem={'0' if request.memory == 'all' else request.memory}")
    return [*options, "--exclusive"] if request.exclusive else options


def file_pattern(folder: Path) -> str:
    """Return a folder for sbatch's --output, where `%` has a meaning. Raises ConfigError if it cannot be written."""
    text = str(folder.absolute())
    if "\\" in text or "\n" in text:
        raise ConfigError(
            f"folder: {text!r}: Slurm cannot write a log into a folder with a backslash or a line break in its name;"
            " choose another"
        )
    return text.replace("%", "%%")


def container_variables(container: Container, folders: Sequence[Path]) -> dict[str, str]:
    """Return what tells the scripts in launch/ to start Python in a container that also sees these folders."""
    mounts = list(dict.fromkeys([*container.mounts, *(f"{folder}" for folder in folders)]))
    unusable = [mount for mount in mounts if any(sign in mount for sign in " ,") or mount.count(":") > 2]
    if unusable:
        raise ConfigError(
            f"cluster.container: cannot mount {unusable[0]!r}: commas, colons and spaces mean something else there"
        )
    places = [mount if ":" in mount else f"{mount}:{mount}" for mount in mounts]
    if container.runtime == "pyxis":
        options = [f"--container-image={container.image}", f"--container-mounts={','.join(places)}"]
        return {
            SRUN_OPTIONS: shlex.join([*options, f"--container-workdir={Path.cwd()}", *container.options]),
            PYTHON: container.python,
        }
    binds = [f"--bind={','.join(places)}", f"--pwd={Path.cwd()}", *container.options]
    return {PYTHON: shlex.join(["apptainer", "exec", "--nv", *binds, container.image, container.python])}
