"""Formats that are not read, and what to do with files in them."""

from __future__ import annotations

from collections.abc import Iterable

AS_TEXT = "a source of their own with `format: text` trains them as they stand"
ADVICE = {
    ".srt .vtt .ass .ssa .sub": f"subtitles: remove the times and save them as .txt; {AS_TEXT}, with the times",
    ".eml .mbox .emlx .msg": "mail: write the texts without headers and attachments as .txt, or as JSON lines with a"
    f" column `text`; {AS_TEXT}, with headers and encoded attachments",
    ".doc .docm .dotx .odt .rtf .pages .wpd": "save them as .docx",
    ".ppt .pptx .odp .key": "export them as .pdf or .txt",
    ".xlsx .xls .xlsm .ods .numbers": "spreadsheets: save each sheet as .csv, its columns' names in the first line",
    ".mobi .azw .azw3 .djvu .lit": "convert them to .epub or .txt",
    ".fb2 .rss .atom .opml .tmx .xliff .tei .svg": "XML: a source of their own with `format: xml` reads their text",
    ".mht .mhtml .asp .aspx .shtml": "save them as .html",
    ".sqlite .sqlite3 .db .mdb .apkg": "export the table, or the deck, as .csv",
    ".avro .orc .tfrecord .h5 .hdf5 .pkl .pickle .npy .npz .rds .rdata .sav .dta": "save their rows as .parquet",
    ".feather": "a source of their own with `format: arrow` reads them",
    ".rar .7z .lz4 .cab": "unpack them, or pack them as .zip or .tar",
    ".mdx .wiki .textile .ltx .man .typ .nfo .sgm .sgml": AS_TEXT,
}
BY_SUFFIX = {suffix: advice for suffixes, advice in ADVICE.items() for suffix in suffixes.split()}


def advice_on(suffixes: Iterable[str]) -> str:
    """Return what to do with files of these suffixes, to be added to a message; "" if nothing is known of them."""
    found: dict[str, list[str]] = {}
    for suffix in sorted(suffixes):
        if suffix in BY_SUFFIX:
            found.setdefault(BY_SUFFIX[suffix], []).append(suffix)
    return "".join(f"; {' and '.join(named)}: {advice}" for advice, named in found.items())
