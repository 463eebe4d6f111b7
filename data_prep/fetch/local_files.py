"""The local files that a source's path names."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.errors import DataError
from cluster.wording import count_of
from data_prep.config import SourceConfig
from data_prep.fetch.hub_layout import OTHER_SPLIT, left_out_of_copy, other_splits_among
from data_prep.files.folders import files_below, files_matching, parts_of_saved_pages, readable_name

log = logging.getLogger(__name__)


def paths_of(source: SourceConfig, passed_over: Counter[str]) -> list[Path]:
    """Return the files that a source's path, folder or glob names, sorted and relative to `relative_to`.

    Hidden files are included only if named explicitly. Files skipped in a copy of a dataset are counted.
    """
    base, path = source.relative_to or Path(), Path(str(source.path)).expanduser()
    if (base / path).is_file():
        if source.split is not None:
            raise DataError(f"data.sources: {path}: `split` selects among files, and this is a single file; remove it")
        return [path]
    if (base / path).is_dir():
        files = files_below(base / path, passed_over)
        return [path / name for name in data_of(base / path, files, source, passed_over, is_folder=True)]
    plain = list(itertools.takewhile(lambda part: not set(part) & set("*?["), path.parts))
    above, rest = Path(*plain), path.parts[len(plain) :]
    files = files_matching(base / above, rest, passed_over) if rest and (base / above).is_dir() else []
    if not files:
        broken = " (a broken link)" if (base / path).is_symlink() else ""
        raise DataError(
            f"data.sources: {path}: no such file, folder or match{broken} in {base.absolute()}; paths are relative to "
            "the folder in which the command runs, or to the source's `relative_to`"
        )
    return [above / name for name in data_of(base / above, files, source, passed_over, is_folder=False)]


def data_of(
    root: Path, files: Sequence[Path], source: SourceConfig, passed_over: Counter[str], *, is_folder: bool
) -> list[Path]:
    """Return the names of files below a folder, without those of a dataset copy that are not the wanted split.

    A glob is taken literally: of its matches, only a `split` excludes any.
    """
    names = [file.relative_to(root) for file in files]
    left_out = parts_of_saved_pages(names) if is_folder else {}
    names = [name for name in names if name not in left_out]
    copied = left_out_of_copy(root, names, source.split) if is_folder or source.split is not None else {}
    passed_over.update([*left_out.values(), *copied.values()])
    read = [name for name in names if name not in copied]
    if copied:
        chosen = f" (the split {source.split or 'train'})" if OTHER_SPLIT in copied.values() else ""
        log.warning(
            "%s: treated as a copy of a dataset: reading %s%s, skipping %s; for another split write `split: NAME`",
            source.label,
            count_of(len(read), "file"),
            chosen,
            shown(copied),
        )
    elif told := other_splits_among(read):
        log.warning(
            "%s: reading all files, although some are named after splits: %s; write `split: train` to read one split",
            source.label,
            shown(told),
        )
    return read


def shown(names: Iterable[Path]) -> str:
    """Return the first few names, for messages."""
    first = [readable_name(name.as_posix()) for name in names]
    return ", ".join(first[:4]) + (f" and {len(first) - 4} more" if len(first) > 4 else "")
