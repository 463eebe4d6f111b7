"""A Space of the Hub that chats with a published model: three files."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from cluster.errors import ConfigError
from cluster.versions import library_version
from training.publish.card import CARD, rendered
from training.publish.files import export_files
from training.publish.repository import read_remote
from training.publish.subject import Subject

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

GRADIO = "6.31.0"  # the release that app.py was tried with
APP, REQUIREMENTS = "app.py", "requirements.txt"


def space_files(subject: Subject) -> dict[str, str]:
    """Return app.py, requirements.txt and README.md with the metadata of the Space."""
    title = subject.repo.rpartition("/")[2]
    values = {
        "repo": json.dumps(subject.repo),
        "title": json.dumps(title),
        "is_adapter": subject.is_adapter,
        "is_chat": subject.is_chat,
        "gradio": GRADIO,
        "license": subject.license and json.dumps(subject.license),
        "versions": {name: library_version(name) for name in ("transformers", "peft")},
    }
    names = {APP: "app.py.jinja", REQUIREMENTS: "requirements.txt.jinja", CARD: "space.md.jinja"}
    return {name: rendered(template, **values) for name, template in names.items()}


def check_model_is_there(api: HfApi, subject: Subject) -> None:
    """Raise ConfigError unless the model's repository holds the very files of this export."""
    remote = read_remote(api, subject.repo, "model")
    first = "push the model first, with the same command without --space"
    if remote is None:
        raise ConfigError(f"--space: there is no model {subject.repo} yet for the Space to chat with; {first}")
    for upload in export_files(subject):
        if upload.name not in remote.files or not remote.files[upload.name].equals(upload):
            raise ConfigError(
                f"--space: the model {subject.repo} holds other files than this export ({upload.name}); {first}"
            )
    if remote.is_private:
        log.warning("%s is private: give the Space a secret named HF_TOKEN, with a token that reads it", subject.repo)
