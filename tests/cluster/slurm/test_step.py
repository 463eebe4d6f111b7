"""One srun, its ranks, and what it does not end by itself."""

from __future__ import annotations

import pytest

from cluster.slurm.step import LeftRanks, StopSignals, run_step

SRUN = """
echo 'shardline: a task begins' >&2
echo 'srun: error: node2: task 1: Killed' >&2
exec sleep 20
"""


def test_ranks_that_srun_does_not_end_after_a_failure_are_killed() -> None:
    signals, killed = StopSignals(), list[bool]()

    def kill() -> None:
        killed.append(True)
        assert signals.process is not None
        signals.process.kill()

    end = run_step(["sh", "-c", SRUN], {}, signals, lambda: True, kill, 0.01)
    assert killed and end.code == 137
    assert end.cause == "the launcher of the ranks on node2 was killed by SIGKILL"


@pytest.mark.parametrize(("first", "code"), [(1, 1), (75, 75)])
def test_tasks_that_srun_has_ended_after_a_failure_do_not_turn_it_into_a_stop(first: int, code: int) -> None:
    told = f"echo 'shardline: a task begins' >&2; echo 'srun: error: a: task 1: Exited with exit code {first}' >&2"
    end = run_step(["sh", "-c", f"{told}; exit 75"], {}, StopSignals(), lambda: True, lambda: None, 0.01)
    assert end.code == code


def test_ranks_are_killed_only_after_a_failure_and_again_until_they_are_gone() -> None:
    left = LeftRanks(within_s=60)
    looks = [(None, 100), (100, 130), (100, 160), (100, 170), (100, 219), (100, 220)]
    assert [left.look(failed, now) for failed, now in looks] == [False, False, True, False, False, True]
