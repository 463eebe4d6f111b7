"""Send a run to trackers twice, as two processes would: `python send_twice.py FOLDER`. See test_trackers.py."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.journal.log import set_up_logging
from launch.runs.track import sent
from tests.training.tracking.life import Life
from training.tracking.follower import Follower
from training.tracking.tracker import TRACKERS


def main(folder: Path) -> None:
    set_up_logging()
    life = Life(folder)
    life.begin(0)
    life.run(6)
    life.step(loss=float("nan"))
    for name in TRACKERS:
        assert sent(Follower(life.paths, name)), name
    life.begin(4)  # killed, and resumed from an older checkpoint: steps 5 to 7 are taken again
    life.run(5)
    life.end()
    for name in TRACKERS:
        assert sent(Follower(life.paths, name)), name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
