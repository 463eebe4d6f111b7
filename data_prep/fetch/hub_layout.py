"""Classify the files of a dataset, on the Hub or in a local copy: data of a split, or description.

A folder is treated as a copy of a dataset only if it clearly is one: `save_to_disk` wrote it, its README begins with a
dataset card and lies beside row files, or the names of its row files contain split names, train among them. A folder of
prose is not a dataset.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.errors import DataError
from cluster.wording import count_of
from data_prep.files.formats import format_of

SPLIT_NAMES = {  # as the Hub interprets them
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
OTHER_SPLIT = "file of another split"  # the label under which skipped files are counted
DESCRIPTION = "description of the dataset"  # likewise
CACHE_FILE = "file that no split of the saved dataset lists"  # likewise
DESCRIPTIONS = {"README.md", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
CARD_KEYS = re.compile(
    r"^(license|language|task_categories|task_ids|dataset_info|configs|size_categories|annotations_creators|"
    r"language_creators|source_datasets|multilinguality|pretty_name|tags|viewer)\s*:",
    re.MULTILINE,
)
SHARD = re.compile(r"[-_.]?\d+[-_]of[-_]\d+")  # train-00000-of-00002
SUFFIXES = re.compile(r"(\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|gz|bz2|xz|zst))+$")
CARD_BYTES = 2**16


def split_of(address: str) -> str | None:
    """Return the split in a file's name, or else in one of its folders' names: train, validation or test."""
    for part in reversed(address.split("/")):
        words = re.split(r"[^a-z]+", part.lower())
        for word, split in SPLIT_NAMES.items():
            if word in words:
                return split
    return None


def is_of(address: str, split: str) -> bool:
    """Return whether a file's name, or one of its folders', contains this split, which may have a custom name."""
    if split in SPLIT_NAMES:
        return split_of(address) == SPLIT_NAMES[split]
    return re.search(rf"(^|[^A-Za-z0-9]){re.escape(split)}([^A-Za-z0-9]|$)", address) is not None


def is_description(address: str) -> bool:
    """Return whether a file of a dataset's repository describes its data, or is a script that loads it."""
    name = address.rpartition("/")[2]
    return name in DESCRIPTIONS or name.endswith(".py")


def left_out_of_copy(root: Path, names: Sequence[Path], split: str | None) -> dict[Path, str]:
    """Return the files to skip in a folder that is a copy of a dataset, each with the reason.

    `names` are relative to `root`. Raises DataError if no file belongs to the `split` that the source asks for.
    """
    saved = saved_files(root, names, split)
    left_out = {name: what for name, what in saved.items() if what}
    rest = [name for name in names if name not in saved]
    if split is not None:
        others = [name for name in rest if not is_of(name.as_posix(), split)]
        if len(left_out) + len(others) == len(names):
            raise DataError(f"{root}: no file name contains the split {split}; the names contain: {listed(rest)}")
        return left_out | {name: DESCRIPTION if is_description(name.name) else OTHER_SPLIT for name in others}
    carded = [name.parent for name in rest if name.name == "README.md" and is_card(root / name)]
    for folder in carded:
        left_out |= beside_card([name for name in rest if folder in name.parents])
    others = [name for name in rest if not any(folder in name.parents for folder in carded)]
    return left_out | beside_train(others)


def beside_card(names: Sequence[Path]) -> dict[Path, str]:
    """Return the files to skip below a folder with a dataset card, if it has row files. As on the Hub, once any name
    contains a split, files whose names contain none are not data.
    """
    told = {name: split_in_name(name) for name in names if is_rows(name)}
    if not told:
        return {}
    others = [name for name in names if any(told.values()) and told.get(name) != "train"]
    return dict.fromkeys(others, OTHER_SPLIT) | {
        name: DESCRIPTION for name in names if is_description(name.name)
    }  # fmt: skip


def beside_train(names: Sequence[Path]) -> dict[Path, str]:
    """Return the row files of other splits than the train split in the same folder, and the files that describe it."""
    left_out: dict[Path, str] = {}
    rows = sorted((home_of(name), name) for name in names if is_rows(name))
    for home, members in itertools.groupby(rows, key=lambda pair: pair[0]):
        told = {name: split_in_name(name) for _, name in members}
        if "train" not in told.values() or len({*told.values()} - {None}) < 2:
            continue
        left_out |= {name: OTHER_SPLIT for name, split in told.items() if split not in (None, "train")}
        homes = {home, home.parent} if home.name == "data" else {home}
        left_out |= {name: DESCRIPTION for name in names if name.name in DESCRIPTIONS and name.parent in homes}
    return left_out


def home_of(name: Path) -> Path:
    """Return the folder of a file's dataset: the one above any folders named after splits."""
    return next((above for above in name.parents if above.name.lower() not in SPLIT_NAMES), Path())


def other_splits_among(names: Sequence[Path]) -> list[Path]:
    """Return the files that are read although they are named after other splits, if some are named after train."""
    told = {
        name: split_in_name(name) if is_rows(name) else SPLIT_NAMES.get(name.name.partition(".")[0].lower())
        for name in names
    }
    others = [name for name, split in told.items() if split not in (None, "train")]
    return others if "train" in told.values() else []


def listed(names: Iterable[Path]) -> str:
    """Return the splits that occur in file names, with counts, for messages."""
    splits = Counter(split for name in names if (split := split_of(name.as_posix())) is not None)
    return ", ".join(f"{split} ({count_of(count, 'file')})" for split, count in sorted(splits.items())) or "none"


def is_rows(name: Path) -> bool:
    form = format_of(name.name)
    return form is not None and form.has_rows and name.name not in DESCRIPTIONS


def split_in_name(name: Path) -> str | None:
    """Return the split that a file of rows, or a folder that it lies in, is plainly named after.

    Stricter than `split_of`: the word begins or ends the name, so that a table of test drives is not left out of one of
    train stations by a word in the middle.
    """
    for part in reversed(name.parts):
        stem = SUFFIXES.sub("", part.lower()) if part == name.name else part.lower()
        words = [word for word in re.split(r"[^a-z]+", SHARD.sub("", stem)) if word]
        for word in (*words[:1], *words[-1:]):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


def is_card(path: Path) -> bool:
    """Return whether a README begins with the header of a dataset card."""
    with path.open("rb") as stream:
        text = stream.read(CARD_BYTES).decode("utf-8", "replace").lstrip("\ufeff").replace("\r\n", "\n")
    head, end, _ = text.removeprefix("---\n").partition("\n---")
    return text.startswith("---\n") and bool(end) and CARD_KEYS.search(head) is not None


def saved_files(root: Path, names: Sequence[Path], split: str | None) -> dict[Path, str]:
    """Return the files of datasets that `save_to_disk` wrote below a folder, each with the reason to skip it, or ""."""
    found: dict[Path, str] = {}
    unwanted = {name.parent / other for name in names if name.name == "dataset_dict.json"
                for other in other_splits(root / name, split)}  # fmt: skip
    for name in names:
        if name.name == "dataset_dict.json":
            found[name] = DESCRIPTION
        elif name.name == "state.json" and (data := data_files(root / name)) is not None:
            inside = [other for other in names if other.parent == name.parent]
            is_wanted = name.parent not in unwanted
            for other in inside:
                kind = DESCRIPTION if other.name in DESCRIPTIONS else CACHE_FILE
                found[other] = ("" if is_wanted else OTHER_SPLIT) if other.name in data else kind
    return found


def other_splits(path: Path, split: str | None) -> list[str]:
    """Return the splits of a saved DatasetDict that are not read. Raises DataError if it lacks the one wanted."""
    splits = read_json(path).get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        return []
    wanted = split or "train"
    if wanted not in splits:
        raise DataError(
            f"{path.parent}: this saved dataset has no split {wanted}, but {', '.join(splits)}; "
            f"write the one to train on below the source in data.sources, for example `split: {splits[0]}`"
        )
    return [name for name in splits if name != wanted]


def data_files(path: Path) -> set[str] | None:
    """Return the names of a saved dataset's data files; None if `save_to_disk` did not write the state file."""
    state = read_json(path)
    listed_files = state.get("_data_files")
    if not isinstance(listed_files, list) or not all(isinstance(item, dict) for item in listed_files):
        return None
    if state.get("_indices_data_files"):
        raise DataError(
            f"{path.parent}: this dataset was saved with an index of selected rows, which is not supported; "
            "save it again after `flatten_indices()`"
        )
    return {str(item.get("filename")) for item in listed_files}


def read_json(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
