"""What transformers makes of a tokenizer's folder, kept on this machine: opening it again takes neither it nor torch.

transformers takes 2 to 6 seconds of CPU to open a tokenizer by its class, most of it for importing torch. What comes
out depends on the folder's small files and the versions of the libraries alone, so it is kept under the digest of
these, with its own digest: `facts.json` and `rules.json`. It is kept only if transformers opens what is saved of it
as the same tokenizer again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.disk.atomic_files import digest_of, sha256_of, whole_folder
from cluster.environment import cache_folder
from cluster.model_files import CONFIG, SMALL_FILES
from data_prep.encode.backends import parsed_rules
from data_prep.shards import tokenizer_digest
from data_prep.shards.tokenizer_files import GENERIC_CLASSES, open_tokenizer, vocabulary_size

log = logging.getLogger(__name__)

KEPT_VERSION = 1  # part of the digest that a tokenizer is kept under: raise it when what is kept changes
KEPT_AT_MOST = 16  # of some megabytes each; the ones that were made first go
LIBRARIES = ("transformers", "tokenizers")
TEMPLATES = "additional_chat_templates"
PROBE = "  It's 2,024 words:\n\n\tdef naïve(x): return 'Привет' + \"漢字 🐢\"  # ½ kg\n"
FACTS, RULES = "facts.json", "rules.json"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a tokenizer is beyond its rules.

    `config` is the tokenizer_config.json that transformers saves of it; `follows_file` tells whether its class makes
    the ids that the folder's own tokenizer.json says.
    """

    class_name: str
    digest: str
    rules_sha256: str
    vocabulary_size: int
    length: int
    ids: dict[str, int | None]
    special_tokens: dict[str, str]
    adds_bos: bool
    chat_template: str | dict[str, str] | None
    config: dict[str, Any]
    follows_file: bool = True


class KeptTokenizer:
    """A tokenizer by its rules and its facts, with as much of transformers' interface as preparation needs."""

    def __init__(self, name_or_path: str, facts: Facts, rules: str) -> None:
        self.name_or_path, self.facts, self.rules = name_or_path, facts, rules
        self.chat_template = facts.chat_template
        self.special_tokens_map = dict(facts.special_tokens)
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (facts.ids[name] for name in ("bos", "eos", "pad"))
        self.vocabulary_size = facts.vocabulary_size

    def __len__(self) -> int:
        return self.facts.length

    @cached_property
    def backend_tokenizer(self) -> Any:
        return parsed_rules(self.rules)

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        return self.special_tokens_map.get("pad_token")

    @pad_token.setter
    def pad_token(self, token: str) -> None:
        self.special_tokens_map["pad_token"] = token
        self.pad_token_id = self.backend_tokenizer.token_to_id(token)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def decode(self, ids: list[int]) -> str:
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=False))

    def save_pretrained(self, folder: Path) -> None:
        """Write what transformers opens as this tokenizer."""
        config = {**self.facts.config, **{key: self.special_tokens_map[key] for key in self.special_tokens_map}}
        (folder / "tokenizer.json").write_text(self.rules, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if isinstance(self.chat_template, str):
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


def open_kept(folder: Path, kept: Path | None = None) -> Any:
    """Open a tokenizer's folder as transformers does, by what was kept of that if it was opened before.

    `kept` is where; default: this user's cache. Raises DataError. What cannot be kept is returned as it was opened.
    """
    kept = cache_folder() / "tokenizers" if kept is None else kept
    place = kept / digest_of(described(folder))[:32]
    found = read_kept(place, str(folder))
    if found is not None:
        return found
    tokenizer = open_tokenizer(folder)
    made = kept_form(tokenizer, folder)
    if made is None:
        return tokenizer
    try:
        write_kept(place, made)
    except OSError as error:  # a home that is full or read-only costs the next start some seconds, nothing else
        log.info("%s: %s: the tokenizer is opened by transformers at each start", place, error.strerror)
    return made


def described(folder: Path) -> dict[str, Any]:
    """Return what the opening of a folder depends on."""
    files = {path for pattern in (*SMALL_FILES, f"{TEMPLATES}/*") for path in folder.glob(pattern) if path.is_file()}
    return {
        "version": KEPT_VERSION,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "files": {str(path.relative_to(folder)): sha256_of(path) for path in files if "safetensors" not in path.name},
        "path": str(folder) if (folder / CONFIG).exists() else None,  # transformers knows some models by their name
    }


def read_kept(place: Path, name_or_path: str) -> KeptTokenizer | None:
    """Return the kept tokenizer; None if none is kept whole."""
    try:
        facts = Facts(**json.loads((place / FACTS).read_text(encoding="utf-8")))
        raw = (place / RULES).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s: damaged (%s): the tokenizer is opened again", place, error)
        return None
    if hashlib.sha256(raw).hexdigest() != facts.rules_sha256:
        log.warning("%s: damaged (other bytes than were written): the tokenizer is opened again", place)
        return None
    return KeptTokenizer(name_or_path, facts, raw.decode())


def kept_form(tokenizer: Any, source: Path) -> KeptTokenizer | None:
    """Return a tokenizer in the form that is kept, None if transformers would open that as another one."""
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        shutil.rmtree(folder)
        folder.mkdir()
        rules = rules_of(tokenizer)
        facts = Facts(
            class_name=type(tokenizer).__name__,
            digest=tokenizer_digest(tokenizer),
            rules_sha256=hashlib.sha256(rules.encode()).hexdigest(),
            vocabulary_size=vocabulary_size(tokenizer),
            chat_template=tokenizer.chat_template,
            config=config,
            follows_file=follows_rules(tokenizer, source / "tokenizer.json"),
            **quick_facts_of(tokenizer),
        )
        made = KeptTokenizer(str(source), facts, rules)
        made.save_pretrained(folder)
        again = open_tokenizer(folder)
        is_same = rules_of(again) == rules and quick_facts_of(again) == quick_facts_of(tokenizer)
        return made if is_same and type(again) is type(tokenizer) else None


def quick_facts_of(tokenizer: Any) -> dict[str, Any]:
    """Return the facts of a tokenizer opened by transformers that are quick to read."""
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {
        "length": len(tokenizer),
        "ids": ids,
        "special_tokens": {name: t for name, t in tokenizer.special_tokens_map.items() if isinstance(t, str)},
        "adds_bos": ids["bos"] is not None and tokenizer("a")["input_ids"][:1] == [ids["bos"]],
    }


def rules_of(tokenizer: Any) -> str:
    """Return the rules that a tokenizer that transformers has opened follows, without settings of a call."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return str(backend.to_str())


def follows_rules(tokenizer: Any, rules: Path) -> bool:
    """Return whether a tokenizer gives the ids that the file of its rules gives, as far as a probe shows.

    transformers 5 builds the rules of its classes itself and takes only the vocabulary from the file.
    """
    if type(tokenizer).__name__ in GENERIC_CLASSES or not rules.is_file():
        return True
    from tokenizers import Tokenizer

    stored = Tokenizer.from_file(str(rules))
    stored.no_padding()
    stored.no_truncation()
    return bool(stored.encode(PROBE, add_special_tokens=False).ids == tokenizer.encode(PROBE, add_special_tokens=False))


def write_kept(place: Path, tokenizer: KeptTokenizer) -> None:
    """Keep a tokenizer, whole or not at all, and no more of them than KEPT_AT_MOST."""
    with whole_folder(place) as partial:
        (partial / RULES).write_text(tokenizer.rules, encoding="utf-8")
        (partial / FACTS).write_text(json.dumps(asdict(tokenizer.facts), ensure_ascii=False), encoding="utf-8")
    others = sorted((path for path in place.parent.iterdir() if path != place), key=written_at)
    for path in others[: max(0, len(others) + 1 - KEPT_AT_MOST)]:
        shutil.rmtree(path, ignore_errors=True)  # another process may be removing it too


def written_at(path: Path) -> float:
    """Return when a kept tokenizer was written; 0 for one that another process has removed since it was listed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
