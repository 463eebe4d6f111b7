"""The status of a run, from its folder alone, while it trains or long after. Needs no torch."""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.errors import EXIT_USER_ACTION
from cluster.journal.records import newest_not_requeued
from cluster.model_files import weights_digest
from cluster.paths import RANK_FILE, RunPaths
from cluster.preflight.excluded_hosts import excluded_text
from cluster.wording import count_of
from training.reporting.run_state import RECENT_STEPS, RunState, read_record, read_state
from training.reporting.saves import checkpoints_text, committed, saving_text
from training.reporting.segments import goodput_text, segments
from training.reporting.wording import duration

MOSTLY = 0.8  # of the steps: a rank that is the slowest in fewer of them may be so by chance
NOISE = 0.05  # of the median rank's time: less is what one rank may differ from another by
QUIET_S = 300.0  # a run that writes nothing for this long, and for ten steps, counts as dead


def command(verb: str, paths: RunPaths) -> str:
    """Return the command line for a verb, with the run's folder in place of its YAML once the folder holds a copy."""
    return f"shardline {verb} {shlex.quote(str(paths.root)) if paths.config.is_file() else 'RUN.yaml'}"


def status_text(paths: RunPaths, now: datetime | None = None, queue: str = "") -> str:
    """Return a run's status, one fact per line, ending with the next command. A folder without a run is no error.

    `queue` is what a scheduler says about the run's jobs.
    """
    facts = status_facts(paths, read_state(paths), now or datetime.now(UTC), queue)
    return "\n".join(lines_of(facts))


def lines_of(facts: Mapping[str, str]) -> list[str]:
    """Return a line for each fact that there is, and more for one of several lines, beneath its first."""
    return [
        f"{'' if number else name:<13}{line}"
        for name, fact in facts.items()
        for number, line in enumerate(fact.splitlines())
    ]


def status_facts(paths: RunPaths, state: RunState, now: datetime, queue: str = "") -> dict[str, str]:
    """Return the facts of a run's status by their names; those that do not apply are empty."""
    quiet_s = seconds_since_written(paths, state, now)
    return {
        "run": str(paths.root),
        "step": step_text(state),
        "speed": speed_text(state),
        "time left": time_left(state),
        "state": starting_text(state, now) or ending_text(state, quiet_s),
        "queue": queue or not_requeued_text(state),
        "validation": validation_text(state.validation),
        "skipped": f"{count_of(state.skipped, 'step')} changed no weight" if state.skipped else "",
        "starts": starts_text(state),
        "ended": "\n".join(segments(state)) if state.restarts or state.failed_starts else "",
        "goodput": goodput_text(state),
        "excluded": excluded_text(paths),
        "logs": logs_text(paths, state),
        "checkpoints": checkpoints_text(paths.checkpoints, now),
        "saving": saving_text(state),
        "export": str(paths.export) if paths.export.is_dir() else "none yet",
        "evaluation": evaluation_text(read_record(paths.evaluation), paths.export),
        "report": str(paths.report) if paths.report.is_file() else "none yet",
        "next": queued_text(state, queue) or next_text(paths, state, quiet_s, is_starting=is_starting(state, now)),
    }


def seconds_since_written(paths: RunPaths, state: RunState, now: datetime) -> float | None:
    """Return how long ago an attempt without an end last wrote; None if nothing should be running.

    A time in the future, from before the clock was set back, counts as equally far in the past.
    """
    if not state.attempts or state.attempts[-1].end or state.failed_start:
        return None
    written = [state.attempts[-1].started.timestamp()]
    if paths.metrics.is_file():
        written.append(paths.metrics.stat().st_mtime)
    return min(abs(now.timestamp() - moment) for moment in written)


def is_alive(state: RunState, quiet_s: float | None) -> bool:
    if quiet_s is None or state.is_held is not None:
        return quiet_s is not None and state.is_held is True
    return quiet_s < max(QUIET_S, 10 * (state.step_s or 0.0))


def is_starting(state: RunState, now: datetime) -> bool:
    """Return whether a launch that is alive, or of the last minutes, has written nothing else yet."""
    moment = state.launched_again
    if moment is None or state.is_held is not None:
        return moment is not None and state.is_held is True
    return abs((now - datetime.fromisoformat(moment)).total_seconds()) < QUIET_S


def is_going_on(state: RunState, quiet_s: float | None, now: datetime) -> bool:
    """Return whether a run trains or starts, or has yet to be started for the first time."""
    has_begun = bool(state.attempts or state.failed_starts)
    is_held = state.is_held is True and not state.is_finished  # it starts, or what it started ends, or is started again
    return not has_begun or is_held or is_alive(state, quiet_s) or is_starting(state, now)


def starting_text(state: RunState, now: datetime) -> str:
    """Return since when the run has been starting; nothing if it is not, or if the start before this one failed."""
    if not is_starting(state, now) or state.failed_start:
        return ""
    return f"starting: launched at {state.launched_again}, nothing written yet"


def not_requeued_text(state: RunState) -> str:
    job = newest_not_requeued(state.events)
    return "" if job is None else f"job {job} has stopped, and Slurm did not put it back: submit it again"


def step_text(state: RunState) -> str:
    if not state.lines:
        return f"none of {state.total_steps:,}" if state.total_steps else "none"
    last = state.lines[-1]
    of = f" of {state.total_steps:,} ({state.step / state.total_steps:.1%})" if state.total_steps else ""
    return f"{state.step:,}{of}, loss {last['loss']:.4f}, {last['tokens_per_s']:,.0f} tokens/s"


def speed_text(state: RunState) -> str:
    """Return what the newest steps' lines tell beyond tokens per second; nothing of a run that did not measure it."""
    if not state.lines:
        return ""
    last, recent = state.lines[-1], state.lines[-RECENT_STEPS:]
    found = []
    if "useful_tokens_per_s" in last:
        found.append(f"{last['useful_tokens_per_s']:,.0f} tokens/s without padding")
    if mfus := [line["mfu"] for line in recent if "mfu" in line]:
        found.append(f"MFU {statistics.median(mfus):.1%}")
    if "memory_gb" in last:
        found.append(f"{last['memory_gb']:.1f} GB on rank 0")
    if slowest := slowest_text(state, RECENT_STEPS):
        found.append(slowest)
    return ", ".join(found)


def slowest_text(state: RunState, recent: int | None = None) -> str:
    """Return which rank is the slowest in nearly all of the (recent) steps, and by how much in their median.

    Nothing if there is none: on a host that others use too, each step has another slowest rank, by any share.
    """
    attempt = state.paced
    if attempt is None:
        return ""
    lines = attempt.measured if recent is None else attempt.measured[-recent:]
    rank, is_mostly, by = slowest_of(lines)
    if not is_mostly or by < NOISE:
        return ""
    is_newest = attempt is state.attempts[-1]
    when = "is the slowest" if is_newest else f"was the slowest in the attempt from step {attempt.start['step'] + 1:,}"
    return f"rank {rank} {when}, by {by:.0%} (median of {count_of(len(lines), 'step')})"


def slowest_of(lines: Sequence[dict[str, Any]]) -> tuple[int, bool, float]:
    """Return the rank that was the slowest most often, whether it was in nearly all of these steps, and by how much."""
    found = [(line["slowest_rank"], line["slowest_by"]) for line in lines]
    rank, times = Counter(rank for rank, _ in found).most_common(1)[0]
    by = statistics.median(excess if slowest == rank else 0.0 for slowest, excess in found)
    return rank, times >= MOSTLY * len(found), by


def time_left(state: RunState) -> str:
    if state.step_s is None or state.total_steps is None or state.is_finished:
        return ""
    seconds = (state.total_steps - state.step) * state.step_s
    return f"{duration(seconds)} at {state.step_s:.3g} s a step"


def starts_text(state: RunState) -> str:
    if not state.attempts and not state.failed_starts:
        return ""
    failed = f"; and {len(state.failed_starts)} that took no step" if state.failed_starts else ""
    return f"{len(state.attempts)}, restarts: {state.restarts}{failed}"


def ending_text(state: RunState, quiet_s: float | None) -> str:
    if failed := state.failed_start:
        again = f"; launched again at {state.launched_again}, nothing written yet" if state.launched_again else ""
        code = failed["exit_code"]
        return f"the last attempt took no step: {failed['reason']} (exit code {code}) at {failed['time']}{again}"
    if not state.attempts:
        return "never trained"
    end = state.attempts[-1].end
    if end:
        reason = "finished" if end["reason"] == "done" else f"ended early: {end['reason']}"
        return f"{reason} (exit code {end['exit_code']}) at {end['time']}"
    ago = f"{duration(quiet_s or 0.0)} ago"
    wrote = f"the last step was written {ago}" if state.lines else f"it started {ago} and has written no step"
    if state.is_held is not None:
        return f"running: {wrote}" if state.is_held else f"killed or crashed: {wrote}"
    return f"running or killed: {wrote}" if is_alive(state, quiet_s) else f"probably killed or crashed: {wrote}"


def validation_text(losses: dict[int, float]) -> str:
    if not losses:
        return ""
    last, best = max(losses), min(losses, key=lambda step: losses[step])
    return f"loss {losses[last]:.4f} at step {last:,}; lowest: {losses[best]:.4f} at step {best:,}"


def logs_text(paths: RunPaths, state: RunState) -> str:
    """Return where the output of the newest attempt's ranks is; first that of the rank that told why it ended."""
    found = [path for path in paths.logs.glob("*-rank*.log") if RANK_FILE.fullmatch(path.name)]
    if not found:
        return ""
    newest = max(found, key=lambda path: path.stat().st_mtime)
    match = RANK_FILE.fullmatch(newest.name)
    every = str(paths.rank_log(match[1] if match else "", "*"))
    ended = state.events[-1].get("log") if state.events else None
    return f"{paths.root / ended}; of all its ranks: {every}" if isinstance(ended, str) else every


def evaluation_text(evaluation: dict[str, Any] | None, export: Path) -> str:
    if evaluation is None:
        return "none yet"
    base, tuned = evaluation["models"]["base"], evaluation["models"]["tuned"]
    older = ", of an earlier export than the one that is there now" if is_stale(evaluation, export) else ""
    return f"held-out loss {base['loss']:.4f} -> {tuned['loss']:.4f}{older}"


def is_stale(evaluation: dict[str, Any], export: Path) -> bool:
    """Return whether an evaluation is of another export than the one that is there now.

    One that an earlier version wrote does not tell, and counts as current.
    """
    known = (evaluation.get("export") or {}).get("digest")
    return bool(known) and export.is_dir() and known != weights_digest(export)


def queued_text(state: RunState, queue: str) -> str:
    """Return what to do while a scheduler has jobs of the run; nothing without any, or once it is trained."""
    if state.is_finished or not queue or queue.startswith("unknown"):
        return ""
    return "wait: the queue has its jobs; a training beside them would be refused, or refuse them"


def next_text(paths: RunPaths, state: RunState, quiet_s: float | None, *, is_starting: bool) -> str:
    if is_alive(state, quiet_s) or is_starting:
        return f"wait; to save and stop it: touch {shlex.quote(str(paths.stop_request))}"
    if state.total_steps is None and not is_prepared(paths):
        return command("prepare", paths)
    if not state.is_finished:
        end = state.failed_start or (state.attempts[-1].end if state.attempts else None)
        first = "fix what ended it, then: " if end and end["exit_code"] == EXIT_USER_ACTION else ""
        again = " (resumes from the newest checkpoint)" if committed(paths.checkpoints) else ""
        return first + command("train", paths) + again
    evaluation = read_record(paths.evaluation)
    for made, verb in ((paths.export, "export"), (paths.evaluation, "evaluate"), (paths.report, "report")):
        if not made.exists() or (verb == "evaluate" and evaluation and is_stale(evaluation, paths.export)):
            return command(verb, paths)
    return command("chat", paths)


def is_prepared(paths: RunPaths) -> bool:
    from data_prep.shards import MANIFEST  # here, as it imports numpy and Arrow, and most runs do not come this far

    return (data_folder(paths) / MANIFEST).is_file()


def data_folder(paths: RunPaths) -> Path:
    """Return where the prepared data is, or will be."""
    from cluster.config_loading import read_yaml  # imports a YAML parser

    data = read_yaml(paths.config).get("data") if paths.config.is_file() else None
    folder = data.get("folder") if isinstance(data, dict) else None
    return Path(paths.located(folder)) if folder else paths.shards
