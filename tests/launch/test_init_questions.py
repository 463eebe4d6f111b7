"""`shardline init` at a terminal, and what it says of data and models that cannot be used."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.config_loading import load_config
from cluster.errors import ConfigError
from data_prep.preview.document_sizes import DocumentSizes
from launch.config import RunConfig
from launch.data.init import write_init
from launch.first_run.choices import choose, rows_of
from launch.first_run.facts import DataFacts, Machine
from launch.first_run.named_settings import Named
from launch.first_run.questions import ask_open_lines
from launch.first_run.run_yaml import run_name
from launch.first_run.summary import summary, wrapped
from launch.first_run.times import processor_seconds

ROOT = Path(__file__).resolve().parents[2]
FAQ = "Frage;Antwort\nWann ist geöffnet?;Dienstag bis Samstag, zehn bis neunzehn Uhr.\nWo ist der Laden?;Am Turm.\n"

Command = Callable[..., object]


class Terminal:
    """A command at a terminal of 80 columns; `answer` waits for a question, then types."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "launch", *arguments]
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.seen, self.unread = "", ""

    def until(self, text: str) -> str:
        """Return what is shown up to a text."""
        deadline = time.monotonic() + 120
        while text not in self.unread and time.monotonic() < deadline:
            if select.select([self.ours], [], [], 1.0)[0]:
                try:
                    self.unread += os.read(self.ours, 4096).decode(errors="replace")
                except OSError:  # the command has ended
                    break
        before, found, self.unread = self.unread.partition(text)
        self.seen += before + found
        assert found, self.seen
        return before

    def answer(self, question: str, text: str) -> None:
        self.until(question)
        os.write(self.ours, f"{text}\n".encode())


@pytest.fixture
def evening(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "faq.csv").write_text(FAQ)
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no")
    terminal = Terminal(tmp_path, "init", "--output", "Mein Läuf.yaml")
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.ours)


def test_an_answer_that_cannot_be_used_is_asked_again_until_the_yaml_is_valid(
    evening: Terminal, tmp_path: Path
) -> None:
    evening.answer("or a glob", "nothing-here")
    evening.answer("no file or folder of this name", "empty")
    evening.answer("the folder is empty", "faq.csv")
    evening.answer("holds the question?", "Antwort?")
    evening.answer("answer one of: Frage, Antwort", "frage")
    evening.answer("holds the answer?", "Frage")  # is the question already
    evening.answer("answer one of: Antwort", "Antwort")
    evening.answer("Model to fine-tune", "photos")
    evening.answer("it is no model", "")
    evening.until("next: shardline check 'Mein Läuf.yaml'")
    assert evening.process.wait(60) == 0

    (source,) = load_config(RunConfig, tmp_path / "Mein Läuf.yaml").data.sources
    assert (source.fields.prompt, source.fields.completion) == ("Frage", "Antwort")


def test_a_wrong_answer_is_undone_by_going_back(evening: Terminal, tmp_path: Path) -> None:
    evening.answer("or a glob", "faq.csv")
    evening.answer("holds the question?", "back")  # there is none before
    evening.answer("answer one of: Frage, Antwort", "Antwort")
    evening.answer("back: the question before", "back")
    evening.answer("holds the question?", "Frage")
    evening.answer("holds the answer?", "Antwort")
    evening.answer("Model to fine-tune", "")
    assert evening.process.wait(60) == 0

    (source,) = load_config(RunConfig, tmp_path / "Mein Läuf.yaml").data.sources
    assert (source.fields.prompt, source.fields.completion) == ("Frage", "Antwort")


def test_a_speaker_is_asked_for_until_the_answer_is_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["boss", "user", "back", "assistant", "user"])
    monkeypatch.setattr("builtins.input", lambda question: next(said))
    comment = "???  # user, assistant, system or tool"
    assert ask_open_lines(["roles:", f"  Anna: {comment}", f"  Bob: {comment}"]) == (
        "roles:",
        "  Anna: assistant",
        "  Bob: user",
    )


def test_a_chosen_way_to_read_columns_leaves_the_encoding_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["2", "cp1252"])
    monkeypatch.setattr("builtins.input", lambda question: next(said))
    ways = ["fields: {prompt: a, completion: b}", "fields: {prompt: a, completion: c}"]
    lines = [*(f"#   {way}" for way in ways), "encoding: ???  # such as cp1252", "fields:", "  messages: ???"]
    assert ask_open_lines(lines) == (ways[1], "encoding: cp1252")


def test_ctrl_c_at_a_question_writes_nothing(evening: Terminal, tmp_path: Path) -> None:
    evening.until("or a glob")
    for _ in range(10):
        time.sleep(0.3)  # a signal between the question and the wait for a key is seen at the next one: readline's way
        os.killpg(evening.process.pid, signal.SIGINT)
        try:
            evening.process.wait(20)  # a second signal while the command ends by the first would kill it
            break
        except subprocess.TimeoutExpired:
            continue
    assert evening.process.returncode == 130
    assert not list(tmp_path.glob("*.yaml"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.txt", "there is no file or folder of this name"),
        ("empty", "the folder is empty"),
        ("table.xlsx", "save the sheet as CSV"),
        ("zero.txt", "its files are empty"),
        ("photos", r"nothing to read here \(1 \.jpg\)"),
    ],
)
def test_data_that_cannot_be_read_say_why(tmp_path: Path, name: str, said: str) -> None:
    for folder in ("empty", "photos"):
        (tmp_path / folder).mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no")
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    (tmp_path / "zero.txt").touch()
    with pytest.raises(ConfigError, match=said):
        write_init(None, str(tmp_path / name), None, tmp_path / "run.yaml")
    assert not (tmp_path / "run.yaml").exists()


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text(FAQ)
    with pytest.raises(ConfigError, match=r"holds no config\.json, so it is no model"):
        write_init(None, str(tmp_path / "faq.csv"), str(tmp_path), tmp_path / "run.yaml")


def test_numbers_that_follow_from_unread_columns_are_said_to_be_unknown(tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text(FAQ)
    said = write_init(None, str(tmp_path / "faq.csv"), None, tmp_path / "run.yaml")
    assert "how many steps and how long is not known" in said and "time  " not in said
    assert "--field prompt=COLUMN --field completion=COLUMN" in said
    assert (tmp_path / "run.yaml").read_text().count("a usual value: your data were not measured") == 5


def test_named_columns_are_measured_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    data, output = tmp_path / "faq.csv", tmp_path / "run.yaml"
    data.write_text(FAQ)
    wrong, right = (Named(fields={"prompt": "Frage", "completion": answer}) for answer in ("Antwrt", "Antwort"))
    with pytest.raises(ConfigError, match="no columns Antwrt; columns seen: Frage, Antwort"):
        write_init(None, str(data), None, output, named=wrong)
    said = write_init(None, str(data), None, output, named=right)
    assert "pairs, about 2 documents" in said and "WARNING" in said


def test_a_chosen_way_to_read_columns_decides_the_kind(tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text(FAQ)
    way = Named(lines=("fields: {prompt: Frage, completion: Antwort}",))
    assert ": pairs, about 2" in write_init(None, str(tmp_path / "faq.csv"), None, tmp_path / "a.yaml", named=way)


def test_the_larger_files_decide_the_kind_and_the_others_are_told(tmp_path: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chats.jsonl").write_text(row * 30)
    (tmp_path / "data" / "README.md").write_text("What these are.\n")
    said = write_init(None, str(tmp_path / "data"), None, tmp_path / "run.yaml")
    assert ": conversations, about " in said
    assert "README.md holds running text and is trained on too" in said


def test_rows_are_estimated_as_they_will_be_packed() -> None:
    facts = DataFacts(kind="pairs", bytes=1, sizes=sizes([100] * 50))
    assert rows_of(facts, 250) == pytest.approx(25)
    assert rows_of(facts, 64) == pytest.approx(100)  # each fills a row, and the rest of it another one


def sizes(lengths: list[int]) -> DocumentSizes:
    return DocumentSizes(documents=len(lengths), tokens=float(sum(lengths)), lengths=np.array(lengths))


def test_a_run_of_few_steps_is_warned_of_and_a_longer_one_takes_more_time() -> None:
    few, many = (DataFacts(kind="pairs", bytes=1, sizes=sizes([200] * count)) for count in (20, 4000))
    machine = Machine(0, 2)
    short, long = (choose(facts, None, machine, lora=False) for facts in (few, many))
    assert any("will teach next to nothing" in line for line in summary("d", few, None, short, machine))
    assert not any("WARNING" in line for line in summary("d", many, None, long, machine))
    assert processor_seconds(long, 1e11) > 3 * processor_seconds(short, 1e11)


def test_a_run_is_named_in_plain_letters_and_long_lines_are_broken_between_words() -> None:
    assert run_name("Mein Läuf größer") == "Mein-Laeuf-groesser"
    assert run_name("été") == "ete" and run_name("日本") == "run"
    assert wrapped("rows           " + "word " * 30, 60).splitlines()[1].startswith(" " * 15 + "word")
