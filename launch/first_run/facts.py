"""What can be found out about the data and the model on this machine, without a network."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.config_loading import validate
from cluster.environment import gpu_count
from cluster.errors import ConfigError, DataError
from cluster.machine import cpu_count, has_bf16
from cluster.model_files import CONFIG, cached_folder, found_folder, looks_local, read_settings, weight_files
from data_prep.config import DataConfig, SourceConfig
from data_prep.fetch.source_files import files_of
from data_prep.preview.document_sizes import DocumentSizes, measure_documents
from data_prep.preview.first_look import FirstLook
from data_prep.rows.fields import PLACEHOLDER
from data_prep.rows.roles import json_text
from data_prep.shards.tokenizer_files import open_tokenizer
from launch.first_run.named_settings import open_settings, remarks_on, settings_of

Result = TypeVar("Result")

BYTES_PER_TOKEN = 4.0  # of English text, for most tokenizers
VOCABULARIES = ((4_000_000, 8192), (400_000, 4096), (0, 2048))  # bytes of the corpus, ids of its own tokenizer
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods")
NOTHING_HERE = "there are no files here that could be sampled"
POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model to fine-tune. What is None is not known here; `template` is for conversations, with its reason."""

    name: str
    folder: Path | None
    parameters: int | None = None
    positions: int | None = None
    template: str | None = None
    template_reason: str = ""
    lora_doubts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The corpus. `sizes` is None where `unmeasured` says why; then `bytes` is all that is known.

    `others` are files of another kind than the rest, with their kinds; `unread` counts files that cannot be read, by
    suffix; `refused` are others that cannot be read, with the reasons; `remarks` say why something has to be filled in.
    """

    kind: str
    bytes: int
    sizes: DocumentSizes | None
    unmeasured: str = ""
    by_own_tokenizer: bool = False
    others: tuple[tuple[str, str], ...] = ()
    unread: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def is_talk(self) -> bool:
        """Whether a chat template renders the rows: of pairs too, so that the model can be talked to."""
        return self.kind in ("conversations", "pairs")

    @property
    def tokens(self) -> float:
        return self.sizes.tokens if self.sizes else self.bytes / BYTES_PER_TOKEN

    @property
    def vocab_size(self) -> int:
        return next(size for least, size in VOCABULARIES if self.bytes >= least)


@dataclass(frozen=True)
class Machine:
    """The processors of this machine, how many ranks `shardline train` starts on them, and if they compute in bf16."""

    gpus: int
    ranks: int
    has_bf16: bool = True

    @classmethod
    def here(cls) -> Machine:
        gpus = gpu_count()
        return cls(gpus, gpus or min(2, cpu_count()), has_bf16=gpus > 0 or has_bf16())


def look_at_model(name: str) -> ModelFacts:
    """Return what is known of a model here. Raises ConfigError if it cannot be trained, or is no model."""
    from data_prep.encode.tokenizer import choose_template
    from training.models.untrainable import check_trainable

    is_local = looks_local(name) or Path(name).expanduser().exists()
    folder = found_folder(name, "--model") if is_local else cached_folder(name)
    if folder is None:
        return ModelFacts(name=name, folder=None)
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"--model {name}: this folder holds no {CONFIG}, so it is no model; name a folder with {CONFIG},"
            " a tokenizer and safetensors weights, a name of the Hub such as OWNER/NAME, or none for a new small model"
        )
    check_trainable(folder, weights=False)
    settings = read_settings(folder / CONFIG)
    text = settings.get("text_config")
    settings = {**settings, **text} if isinstance(text, dict) else settings
    template, reason = choose_template(open_tokenizer(folder))
    found = [settings[key] for key in POSITIONS if isinstance(settings.get(key), int) and settings[key] > 0]
    return ModelFacts(
        name=name,
        folder=folder,
        parameters=stored_parameters(folder) or built_parameters(folder),
        positions=min(found) if found else None,
        template=template,
        template_reason=reason,
    )


def lora_doubts(model: ModelFacts) -> tuple[str, ...]:
    """Return why LoRA on a model would not learn to end its answers, as `train` warns."""
    from training.config import ModelConfig
    from training.models.source import look_at_model as find_origin  # imports torch
    from training.models.unseen_stop import unseen_stop_warnings

    if model.folder is None:
        return ()
    config = ModelConfig(path=str(model.folder))
    return tuple(unseen_stop_warnings(find_origin(config, open_tokenizer(model.folder), 16)))


def stored_parameters(folder: Path) -> int | None:
    """Return the number of weights in a folder's safetensors files, from their headers; None if one is not here."""
    total = 0
    for name in weight_files(folder):
        try:
            with (folder / name).open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        except (OSError, ValueError, MemoryError, OverflowError):
            return None
        total += sum(numel(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
    return total


def numel(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def built_parameters(folder: Path) -> int | None:
    """Return the number of parameters that transformers would build from a configuration; None if it cannot."""
    if not (folder / CONFIG).is_file():
        return None
    from training.models.source import read_config, skeleton_of  # imports torch

    try:
        model = skeleton_of(read_config(folder, weights=False))
    except ConfigError:  # `check` says why
        return None
    return sum(int(value.numel()) for value in model.parameters())


def look_at_data(data: str, kind: str, found: FirstLook, model: ModelFacts | None) -> DataFacts:
    """Measure the corpus with the model's tokenizer if it is here, else with one trained on the sample.

    Raises DataError for data that are here and that `prepare` would refuse.
    """
    size, unread = files_found(data)
    known = model is not None and model.folder is not None
    facts = DataFacts(kind=kind, bytes=size, sizes=None, by_own_tokenizer=not known, others=found.others, unread=unread)
    facts = replace(facts, refused=found.refused_files)
    left = list(dict.fromkeys(key or name for name, key in open_settings(found.lines)))
    if left:
        told = ", ".join(key if key.isprintable() else json_text(key) for key in left)
        why = f"{PLACEHOLDER} in the YAML stands for what you know and the data do not say ({told})"
        return replace(facts, unmeasured=why, remarks=remarks_on(found.lines))
    if size == 0:
        return replace(facts, unmeasured=NOTHING_HERE)
    try:
        config = data_config(data, found.lines, model, facts)
        path = str(model.folder) if model is not None and known else None
        sizes = with_quiet_log(lambda: measure_documents(config, path, may_add_tokens=not known))
    except ConfigError as error:
        return replace(facts, unmeasured=str(error))
    return replace(facts, sizes=sizes, unmeasured="" if sizes else NOTHING_HERE)


def data_config(data: str, lines: Sequence[str], model: ModelFacts | None, facts: DataFacts) -> DataConfig:
    """Return the `data:` section to measure with: the one that the YAML will have."""
    source = settings_of(lines)
    section: dict[str, Any] = {"sources": [validate(SourceConfig, {"path": data, **source}, source="--field")]}
    if model is None or model.folder is None:
        section["tokenizer"] = {"train": {"vocab_size": facts.vocab_size}}
    elif model.template is not None and facts.is_talk:
        section["chat_template"] = model.template
    return DataConfig(**section)


def with_quiet_log(function: Callable[[], Result]) -> Result:
    """Call a function without its INFO lines: `init` says itself what it found."""
    logger = logging.getLogger("data_prep")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return function()
    finally:
        logger.setLevel(level)


def files_found(data: str) -> tuple[int, Mapping[str, int]]:
    """Return the bytes of the data's files, and counts of the files that cannot be read; zero if there are none."""
    try:
        named, passed_over = files_of(SourceConfig(path=data), {})
    except DataError:
        return 0, {}
    return sum(location.stat().st_size for _, location in named), passed_over


def why_nothing_here(data: str) -> str | None:
    """Return why there is nothing to read under this name, or None."""
    path = Path(data).expanduser()
    try:
        named, _ = files_of(SourceConfig(path=data), {})
    except DataError as error:
        if not any(letter in data for letter in "*?[") and not path.exists():
            where = "" if path.is_absolute() else f" in {Path.cwd()}"
            return f"there is no file or folder of this name{where}"
        if path.is_dir() and not any(path.iterdir()):
            return "the folder is empty"
        if path.suffix.lower() in SPREADSHEETS:
            return "spreadsheets are not read: save the sheet as CSV, with the names of its columns in the first line"
        return str(error).partition(f"{SourceConfig(path=data).label}: ")[2] or str(error)
    if sum(location.stat().st_size for _, location in named) == 0:
        return "its files are empty"
    return None
