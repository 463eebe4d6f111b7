"""`shardline push`: publish an export on the Hugging Face Hub, with its model card, or a Space that chats with it."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.disk.atomic_files import write_text
from cluster.errors import EXIT_DONE, EXIT_FAILED, ConfigError
from cluster.paths import RunPaths
from cluster.progress import Waiting, amount_of
from launch.config import RunConfig
from launch.models.named_model import add_model, is_model
from launch.saved_config import load, load_run
from launch.wording import say

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from training.export.export_record import ExportRecord
    from training.publish.repository import Change, Push, Remote
    from training.publish.subject import Run, Subject

log = logging.getLogger(__name__)

DONE = {"create": "created", "replace": "replaced", "skip": "skipped", "remove": "removed", "keep": "kept"}
NOTES = {
    "skip": "the repository has it",
    "remove": "left by an earlier push: would be loaded with or instead of the new files",
    "keep": "not of this push",
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_model(command)
    command.add_argument("repo", metavar="OWNER/NAME", help="the repository on the Hub; made if there is none")
    command.add_argument(
        "--space", action="store_true", help="push a Space of that name, which chats with the model pushed before"
    )
    command.add_argument("--private", action="store_true", help="make the repository private; refuse a public one")
    command.add_argument("--dry-run", action="store_true", help="list what would be done to each file; send nothing")
    command.add_argument(
        "--base", metavar="OWNER/NAME", help="the base model's name on the Hub, if it was a folder here"
    )
    command.add_argument("--license", metavar="ID", help="the model's licence, such as apache-2.0; default: not stated")
    command.add_argument("--card", type=Path, metavar="FILE", help="use this README.md in place of the generated one")


def run(options: argparse.Namespace) -> int:
    """Publish, or list what would be published."""
    from huggingface_hub import HfApi, get_token

    from training.publish.hub_errors import HubUnavailableError, hub_errors, no_token

    check_repo(options.repo)
    if get_token() is None and not options.dry_run:
        raise ConfigError(no_token())
    subject = subject_of(options)
    push = push_of(options, subject, get_token())
    api = HfApi(library_name="shardline")
    try:
        if options.dry_run:
            return show(api, push)
        with hub_errors(api.endpoint, options.repo):
            return send(api, push, subject)
    except HubUnavailableError as error:
        log.error("%s", error)
        return EXIT_FAILED


def check_repo(repo: str) -> None:
    """Raise ConfigError unless the name is one that the Hub takes."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # lazily exported

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name of a repository, which are like OWNER/NAME: {error}") from None
    if repo.count("/") != 1:
        raise ConfigError(f"{repo!r} is no name of a repository, which are like OWNER/NAME: add your account's name")


def subject_of(options: argparse.Namespace) -> Subject:
    """Return what is to be published. Raises CheckpointError unless it is an export as it was written."""
    from training.export.export_record import RECORD, check_unchanged, newer_step, read_record
    from training.publish.subject import Subject, base_of

    named: Path = options.run
    if (named / RECORD).is_file() or is_model(named):
        if options.overrides:
            raise ConfigError(f"-o: {named} is an export, not a run: it has no YAML to override; remove -o")
        if not (named / RECORD).is_file():
            raise ConfigError(
                f"{named}: has no {RECORD}, so Shardline did not export it or an earlier version did; export its run"
                f" again, or publish the folder as it is with `hf upload {options.repo} {named}`"
            )
        folder = named
        made_in = RunPaths(named.resolve().parent)
        found = run_of(load_run(made_in.root)) if made_in.config.is_file() else None
    else:
        found = run_of(load(options))
        folder = found.paths.export
    record = read_record(folder)
    with Waiting("reading the export to check that it is as it was written"):
        check_unchanged(folder, record)
    tell_others(folder, record)
    newest = newer_step(record, found.paths.checkpoints) if found else None
    if newest is not None:
        log.warning(
            "the export is of step %d, and there is a checkpoint of step %d; to publish that, run `shardline export`"
            " first",
            record.step,
            newest,
        )
    base = base_of(folder, found, options.base)
    return Subject(repo=options.repo, folder=folder, record=record, run=found, base_id=base, license=options.license)


def tell_others(folder: Path, record: ExportRecord) -> None:
    """Say which files of an export's folder are not its own, and so are not uploaded."""
    from training.export.export_record import RECORD

    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    others = sorted(names - record.files.keys() - {RECORD})
    if others:
        log.warning("not of the export, so not uploaded: %s; a README.md goes with --card", ", ".join(others))


def run_of(run: RunConfig) -> Run:
    from training.publish.subject import Run

    sources = [source.model_dump(mode="json") for source in run.data.sources]
    return Run(name=run.name, paths=run.paths, shards=run.shards, sources=sources, base=run.model.path)


def push_of(options: argparse.Namespace, subject: Subject, token: str | None) -> Push:
    """Return the files of the push, in which nothing private was found."""
    from training.publish.files import check_private, export_files, text_files
    from training.publish.private_text import known_secrets
    from training.publish.repository import Push
    from training.publish.space import space_files

    if options.space:
        uploads = text_files(space_files(subject))
    else:
        uploads = [*export_files(subject), *text_files(card_of(options, subject))]
    check_private(uploads, known_secrets(subject.folder, token))
    name = subject.run.name if subject.run else subject.folder.resolve().name
    return Push(
        repo=options.repo,
        kind="space" if options.space else "model",
        uploads=uploads,
        private=options.private,
        message=f"A chat with {options.repo}" if options.space else f"Step {subject.record.step:,} of {name}",
    )


def card_of(options: argparse.Namespace, subject: Subject) -> dict[str, str]:
    """Return the card, written for this push or the person's own, and its picture; keep a copy of it in the run."""
    from training.publish.card import CARD, card_files

    if options.card is not None:
        if not options.card.is_file():
            raise ConfigError(f"--card: {options.card} is no file; name the README.md that you wrote")
        return {CARD: options.card.read_text(encoding="utf-8")}
    if subject.run is not None and subject.evaluation is None:
        log.warning("there is no evaluation of this export, so the card has none%s", how_to_evaluate(subject))
    if subject.run is not None and subject.manifest is None:
        log.warning("%s holds no manifest any more, so the card does not describe the data", subject.run.shards)
    texts = card_files(subject)
    if subject.run is not None:
        for name, text in texts.items():
            write_text(subject.run.paths.card / name, text)
        log.info("the card is in %s", subject.run.paths.card / CARD)
    return texts


def how_to_evaluate(subject: Subject) -> str:
    """Return which command makes the evaluation that a card lacks."""
    if subject.is_gguf:
        return "; GGUF files are not evaluated"
    is_export = subject.run is not None and subject.folder.resolve() == subject.run.paths.export.resolve()
    form = "" if is_export else f" RUN.yaml --export {shlex.quote(str(subject.folder))}"
    return f"; `shardline evaluate{form}` makes one"


def show(api: HfApi, push: Push) -> int:
    """List what a push would do. Reads the repository if it can be reached, and says so if not; writes nothing."""
    from training.publish.hub_errors import HubUnavailableError, hub_errors
    from training.publish.repository import changes_of, check_visibility, read_remote

    remote, unknown = None, ""
    try:
        with hub_errors(api.endpoint, push.repo):
            remote = read_remote(api, push.repo, push.kind)
    except (HubUnavailableError, ConfigError) as error:
        unknown = str(error).partition(";")[0]
    check_visibility(push, remote)
    changes = changes_of(push, remote)
    say("\n".join([headline(push, remote, unknown), *map(change_line, changes), total_line(changes)]))
    if unknown:
        say(f"what the repository holds is not known ({unknown}), so every file is listed as new")
    return EXIT_DONE


def send(api: HfApi, push: Push, subject: Subject) -> int:
    """Publish, and say what was done."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # as above

    from training.publish.repository import publish
    from training.publish.space import check_model_is_there

    if push.kind == "space":
        check_model_is_there(api, subject)
    if not sys.stderr.isatty():
        disable_progress_bars()  # they are drawn in place
    after, changes = publish(api, push)
    say("\n".join(change_line(change, DONE) for change in changes))
    visibility = "private" if after.is_private else "public"
    folder = "spaces/" if push.kind == "space" else ""
    say(f"{api.endpoint}/{folder}{push.repo}: {visibility}, commit {after.commit[:12]}")
    say("checked: the Hub reports the hash of every file as it is here")
    return EXIT_DONE


def headline(push: Push, remote: Remote | None, unknown: str) -> str:
    """Return which repository it is, and who can see it."""
    if remote is None:
        state = "not known yet" if unknown else f"to be created, {'private' if push.private else 'public'}"
    else:
        state = "private" if remote.is_private else "public"
    return f"{push.kind} {push.repo} ({state}), one commit: {push.message}"


def change_line(change: Change, words: dict[str, str] | None = None) -> str:
    """Return a line of the list of files."""
    word = (words or {}).get(change.action, change.action)
    note = NOTES.get(change.action, "")
    return f"  {word:<9}{amount_of(change.size, 'bytes'):>12}  {change.name}{f'  ({note})' if note else ''}"


def total_line(changes: list[Change]) -> str:
    size = sum(change.size for change in changes if change.action in ("create", "replace"))
    return f"to be sent: {amount_of(size, 'bytes')}, less what the Hub has from a push that was cut"
