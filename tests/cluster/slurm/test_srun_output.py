"""What srun's messages say about how its ranks began and ended."""

from __future__ import annotations

import io
import time

import pytest

from cluster.slurm.srun_output import BEGINS, SrunOutput

LAUNCHER = "the launcher of the ranks on"


def read(*lines: str) -> SrunOutput:
    output = SrunOutput(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
    output.finish()
    return output


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("srun: error: node2: task 1: Killed", f"{LAUNCHER} node2 was killed by SIGKILL"),
        (
            "srun: error: a-1: task 3: Segmentation fault (core dumped)",
            f"{LAUNCHER} a-1 was killed by SIGSEGV",
        ),
        (
            "srun: error: a: task 0: Out Of Memory",
            f"{LAUNCHER} a was killed: out of memory, beyond what the job or this host has",
        ),
        ("srun: error: Node failure on node2", "node2 was lost"),
        ("srun: error: node1: task 0: Exited with exit code 1", None),
        ("srun: error: node1: task 0: Terminated", None),
    ],
)
def test_a_host_whose_launcher_a_signal_has_killed_is_named_with_the_signal(line: str, cause: str | None) -> None:
    assert read("12:00:00 [1/2 node1] W a line of a rank", line).cause == cause


def test_a_step_that_a_person_has_cancelled_is_no_host_s_fault() -> None:
    cancelled = "slurmstepd-node1: error: *** STEP 39.1 ON node1 CANCELLED AT 2026-11-28T12:48:02 ***"
    killed = "srun: error: node2: task 1: Killed"
    assert read(cancelled, killed).cause == "the step of the ranks was cancelled"
    assert read(killed, cancelled).cause == "the launcher of the ranks on node2 was killed by SIGKILL"
    lost = cancelled.replace(" ***", " DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***")
    assert read(lost, killed).cause == "the launcher of the ranks on node2 was killed by SIGKILL"


def test_the_first_that_ended_is_the_cause_and_not_those_that_slurm_has_killed_because_of_it() -> None:
    output, now = read(), time.monotonic()
    output.look("srun: error: node1: task 0: Exited with exit code 1", now)
    output.look("srun: error: node2: task 1: Killed", now + 30)
    assert output.cause is None


def test_a_launcher_that_was_killed_is_the_cause_though_srun_heard_first_of_the_one_that_failed_of_it() -> None:
    output, now = read(), time.monotonic()
    output.look("srun: error: node1: task 0: Exited with exit code 1", now)
    output.look("srun: error: node2: task 1: Killed", now + 0.5)
    assert output.cause == f"{LAUNCHER} node2 was killed by SIGKILL"


def test_what_the_ranks_write_is_passed_on_but_for_the_sign_that_one_has_begun(
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = read(f"0: {BEGINS}", "step 1", "srun: error: Task launch for StepId=7.0 failed on node node2: Timed out")
    assert (output.has_begun, output.is_incomplete) == (True, True)
    told = capfd.readouterr().err
    assert "step 1\n" in told and "node2: Timed out\n" in told and BEGINS not in told
