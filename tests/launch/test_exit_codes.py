"""The exit code says who must act: what a person must fix or interrupted is never 1, which restarts a run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError, exit_code_of
from cluster.paths import RunPaths
from launch.__main__ import main

Command = Callable[..., Any]  # returns a Result: see conftest.py
ROOT = Path(__file__).resolve().parents[2]
WITHOUT_ROOTS_RIGHTS = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (KeyboardInterrupt(), 130),
        (OSError(errno.EROFS, "read-only"), 2),
        (OSError(errno.ENOSPC, "full"), 2),
        (PermissionError(errno.EACCES, "no"), 2),
        (NotADirectoryError(errno.ENOTDIR, "no"), 2),
        (OSError(errno.EIO, "the disk does not answer"), 1),
        (OSError(errno.ESTALE, "the server has forgotten"), 1),
        (ConnectionError("the port is taken"), 1),
        (ValueError("a bug"), 1),
    ],
)
def test_an_error_that_another_start_would_meet_again_is_for_a_person(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


INTERRUPTED_IMPORT = """
import os, signal, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == "launch.runs.status":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
sys.argv = ["shardline", "status"]
from launch.__main__ import entry
entry()
"""


def test_ctrl_c_while_the_verb_is_still_imported_is_told_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr.endswith(" E interrupted\n") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "train --ranks 0",
        "train --ranks -2",
        "train --ranks ²",
        "verify-resume --other-ranks 0",
        "generate --tokens 0",
        "generate --temperature -1",
        "generate --temperature nan",
        "prepare --preview 0",
        "inspect --step 1 --characters 0",
    ],
)
def test_a_number_that_means_nothing_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb, *options = words.split()
    with pytest.raises(SystemExit) as ended:
        main([verb, "run.yaml", *options])
    assert ended.value.code == 2
    assert f"argument {options[-2]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00", "cannot be read as UTF-8 text"),
        (b"- a list", "expected keys and values at the top level, got list"),
        (b"base: run.yaml", "base, in a circle"),
        (b"a: " + b"[" * 600 + b"]" * 600, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, shardline: Command, content: bytes, words: str
) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    shardline("check", tmp_path / "run.yaml").assert_refused(words)


@pytest.mark.parametrize("data", ["5", "[1]", "{sources: 5}", "{sources: [5]}", "null"])
def test_a_kept_configuration_that_was_edited_badly_is_refused(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command, data: str
) -> None:
    (tmp_path / "config.yaml").write_text(f"{{name: t, folder: ., data: {data}, model: {{path: m}}}}")
    shardline("check", tmp_path).assert_refused("config.yaml: ", "to fix", "data")
    (tmp_path / "new.yaml").write_text(f"{{name: new, data: {data}, model: {{path: m}}}}")
    shardline("train", tmp_path / "new.yaml", "--from", tmp_path).assert_refused("config.yaml: ", "to fix", "data")


@pytest.mark.parametrize("value", [".inf", ".nan", "-.inf"])
def test_a_number_that_is_not_finite_is_no_setting(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command, value: str
) -> None:
    shardline("check", run_yaml(tmp_path), "-o", f"train.learning_rate={value}").assert_refused("train.learning_rate: ")


def test_a_pipe_in_the_place_of_a_configuration_is_not_waited_for(tmp_path: Path, shardline: Command) -> None:
    os.mkfifo(tmp_path / "run.yaml")
    shardline("check", tmp_path / "run.yaml").assert_refused("run.yaml: not a file")


def test_a_folder_in_the_place_of_a_configuration_is_no_run(tmp_path: Path, shardline: Command) -> None:
    (tmp_path / "run.yaml").mkdir()
    shardline("train", tmp_path / "run.yaml").assert_refused("run.yaml/config.yaml: no such file")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE are set, but not LOCAL_RANK"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=x: expected a number"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=2: the ranks of a world of 2 are 0 to 1"),
    ],
)
def test_a_launcher_that_says_half_is_told_what_is_missing(
    tmp_path: Path,
    run_yaml: Callable[..., Path],
    shardline: Command,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    words: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shardline("train", run_yaml(tmp_path)).assert_refused(words)


@pytest.mark.parametrize("key", ["folder", "data.folder"])
def test_a_file_in_the_place_of_a_folder_is_named(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command, key: str
) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "corpus.txt").write_text("A run that ends.")
    source = f"data.sources=[{{path: {tmp_path / 'corpus.txt'}}}]"
    result = shardline(
        "prepare", run_yaml(tmp_path), "-o", "data.folder=null", "-o", source, "-o", f"{key}={tmp_path / 'taken'}"
    )
    result.assert_refused(str(tmp_path / "taken"))


@pytest.mark.parametrize("name", ["metrics.jsonl", "attempts.jsonl", "plan.json"])
def test_a_damaged_record_of_a_run_is_named(
    tmp_path: Path, run_yaml: Callable[..., Path], shardline: Command, name: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{\n")
    shardline("status", run_yaml(tmp_path)).assert_refused(f"{name}", "damaged", "remove")


def test_an_export_that_cannot_be_opened_is_named(
    tmp_path: Path, tiny_model: Path, run_yaml: Callable[..., Path], shardline: Command
) -> None:
    path = run_yaml(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "run" / "export")
    assert shardline("generate", path, "--prompt", "a run", "--tokens", "2").code == 0
    shardline("generate", path, "--prompt", "").assert_refused("--prompt: empty")
    (tmp_path / "run" / "export" / "model.safetensors").write_bytes(b"\xff" * 100)
    shardline("generate", path, "--prompt", "a").assert_refused(
        "cannot be loaded", f"run `shardline export {path}` again"
    )


@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path, run_yaml: Callable[..., Path], verb: str) -> None:
    path = run_yaml(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o555)
    values = json.loads(path.read_text())
    if verb == "prepare":
        values["data"] = {"sources": [{"path": str(path)}], "row_tokens": 64}
    (tmp_path / "own.yaml").write_text(json.dumps(values))
    as_nobody = WITHOUT_ROOTS_RIGHTS if os.geteuid() == 0 else []
    command = [*as_nobody, sys.executable, "-m", "launch", verb, str(tmp_path / "own.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert f"{tmp_path / 'run'}" in done.stderr and "Permission denied" in done.stderr


@pytest.mark.parametrize(("redirection", "code"), [(">&-", 0), ("| true", 0), (">/dev/full", 2)])
def test_output_that_nobody_reads_is_no_crash(
    tmp_path: Path, run_yaml: Callable[..., Path], redirection: str, code: int
) -> None:
    command = f"{sys.executable} -m launch status {run_yaml(tmp_path)} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


FAILING_RANK = """
import sys
from pathlib import Path
from types import SimpleNamespace
from cluster.network.world import World
from cluster.paths import RunPaths
from launch.runs.train import logged_as_rank

world = World(rank=1, size=2, local_rank=1, local_size=2, master=("localhost", 1))
with logged_as_rank(SimpleNamespace(paths=RunPaths(Path(sys.argv[1]))), world):
    raise ValueError("a bug")
"""


@pytest.mark.parametrize("is_full", [True, False])
def test_a_traceback_is_on_the_console_if_the_rank_s_log_cannot_hold_it(tmp_path: Path, is_full: bool) -> None:
    log = RunPaths(tmp_path).rank_log("local-1", 1)
    log.parent.mkdir()
    if is_full:
        log.symlink_to("/dev/full")
    command = [sys.executable, "-c", FAILING_RANK, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ValueError: a bug" in done.stderr
    assert ["Traceback" in done.stderr, f"the traceback is in {log}" in done.stderr] == [is_full, not is_full]
    assert done.stderr.count("No space left on device; output of this rank is lost") == is_full
