"""Extract the text of a Jupyter notebook: its cells, without their outputs."""

from __future__ import annotations

import json
from typing import Any

from data_prep.files.bounded_io import RecordError


def notebook_text(data: bytes) -> str:
    """Return the source of a notebook's cells, in order. Raises RecordError if there is none."""
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"damaged notebook ({type(error).__name__})") from None
    found = values if isinstance(values, dict) else {}
    sheets = [found, *(sheet for sheet in found.get("worksheets") or [] if isinstance(sheet, dict))]  # version 3
    cells = [cell for sheet in sheets for cell in sheet.get("cells") or [] if isinstance(cell, dict)]
    texts = [joined(cell.get("source", cell.get("input"))).strip("\n") for cell in cells]
    text = "\n\n".join(text for text in texts if text.strip())
    if not text:
        raise RecordError("notebook without text")
    return text


def joined(source: Any) -> str:
    """Return a cell's lines as one text."""
    return "".join(line for line in source if isinstance(line, str)) if isinstance(source, list) else str(source or "")
