"""trackio: SQLite below TRACKIO_DIR, by default in the run's folder; a Space if TRACKIO_SPACE_ID names one."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.environment import set_defaults
from training.tracking.records import Note, Point, Target

PROJECT = "shardline"


class Trackio:
    def __init__(self, target: Target) -> None:
        set_defaults({"TRACKIO_DIR": str(target.folder.absolute() / "trackio")})
        import trackio
        from trackio.utils import TRACKIO_DIR

        self.level = trackio.AlertLevel.INFO
        self.run = trackio.init(
            project=PROJECT,
            name=f"{target.name}-{target.id[:6]}",  # it knows a run by its name, and other runs may share the folder
            resume="allow",
            config=dict(target.configuration),
            auto_log_gpu=False,
            auto_log_cpu=False,
            embed=False,
        )
        self.look = f"TRACKIO_DIR={TRACKIO_DIR} trackio show --project {PROJECT}"

    def purge(self, step: int, note: int) -> None:
        pass  # it keeps what it has

    def send(self, points: Sequence[Point], notes: Sequence[Note]) -> None:
        for point in points:
            self.run.log(dict(point.values), step=point.step)
        for note in notes:
            self.run.alert("event", note.text, level=self.level, step=note.step)

    def close(self) -> None:
        self.run.finish()


def open_run(target: Target) -> Trackio:
    return Trackio(target)
