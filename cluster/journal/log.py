"""Where log lines go, and what each begins with."""

from __future__ import annotations

import logging
from typing import TextIO

from cluster.environment import node_name
from cluster.network.world import World
from cluster.terminal import ERASE, can_draw_in_place, console


def set_up_logging(
    world: World | None = None, file: TextIO | None = None, *, host: str = "", is_first: bool = True
) -> None:
    """Log to the console: INFO from rank 0, WARNING and above from every rank, with rank and host on each line.

    With `file`, a rank's own log, the same goes there, each line with its date. `host` is for what starts the ranks of
    one host of several: INFO comes from the first one.
    """
    where = f" [{host}]" if host else ""
    if world is not None:
        where, is_first = f" [{world.rank}/{world.size} {node_name()}]" if world.size > 1 else "", world.is_first
    handler = logging.StreamHandler(console())
    erase = ERASE if can_draw_in_place(console()) else ""  # the line in place may be drawn by another process
    handler.setFormatter(logging.Formatter(f"{erase}%(asctime)s{where} %(levelname).1s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    if file is not None:
        beside = logging.StreamHandler(file)
        beside.setFormatter(logging.Formatter(f"%(asctime)s{where} %(levelname).1s %(message)s"))
        root.addHandler(beside)
    root.setLevel(logging.WARNING)
    for package in ("cluster", "data_prep", "training", "launch"):
        logging.getLogger(package).setLevel(logging.INFO if is_first else logging.WARNING)
