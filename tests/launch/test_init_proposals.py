"""What `shardline init` proposes as the next command can be run as it is printed."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config_loading import load_config
from cluster.errors import ConfigError
from data_prep.config import SourceConfig
from launch.config import RunConfig
from launch.data.init import add_arguments, run, write_init

LAKES = {f"How deep is lake {n}?": f"Lake {n} is {n} metres deep." for n in range(5)}
NESTED = {"context": "Lake 1 is 1 metre deep.", "qas": [{"question": "How deep is lake 1?", "answers": []}]}
REFUSED = {
    "an object of rows": (
        "a.json",
        {str(n): {"question": q, "answer": a} for n, (q, a) in enumerate(LAKES.items())},
        "'.[]'",
    ),
    "an object of questions": ("a.json", LAKES, "{prompt: .key, completion: .value}"),
    "an object of anything": ("a.json", {"of": "lakes", "by": {"name": "x"}}, "write one object on each line"),
    "lists in lists": (
        "a.json",
        {"data": [{"title": "Lakes", "paragraphs": [NESTED] * 2}]},
        "paragraphs[].qas[].question",
    ),
    "attributes": ("a.xml", '<posts><row Id="1" Body="How deep is the lake?" /></posts>', "in attributes only"),
}
TURNS = [{"who": "patient", "what": "Does it hurt much?"}, {"who": "the doctor", "what": "It will not hurt at all."}]


def ran(output: Path, *arguments: str) -> SourceConfig:
    """Run `shardline init` as without a terminal; return the source that it wrote."""
    output.unlink(missing_ok=True)
    run(parsed([*arguments, "--yes", "--output", str(output)]))
    return load_config(RunConfig, output).data.sources[0]


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def proposed(said: str, **filled_in: str) -> list[str]:
    """Return the arguments that were proposed, each text of `filled_in` in the place of its capitals in turn."""
    command = re.search(r"`shardline init (.*?)`, which", said)
    assert command is not None, said
    return [filled_in.get(one.partition("=")[0], one) for one in shlex.split(command[1])]


def test_a_table_in_another_encoding_is_measured_by_the_proposed_command(tmp_path: Path) -> None:
    data, output = tmp_path / "faq.csv", tmp_path / "run.yaml"
    data.write_bytes(b"Frage;Antwort\n" + "Wie groß ist es?;Fünf Meter groß.\n".encode("cp1252") * 9)

    said = write_init(None, str(data), None, output)
    assert "not UTF-8: write its `encoding`, such as cp1252" in said and "one of: Frage, Antwort" in said

    source = ran(output, *proposed(said, prompt="prompt=Frage", completion="completion=Antwort"))
    assert (source.encoding, source.fields.prompt, source.fields.completion) == ("cp1252", "Frage", "Antwort")


def test_named_columns_leave_an_unknown_encoding_open(tmp_path: Path) -> None:
    data, output = tmp_path / "faq.csv", tmp_path / "run.yaml"
    data.write_bytes("Frage;Antwort\nWie groß ist es?;Fünf Meter groß.\n".encode("cp1252"))
    with pytest.raises(ConfigError, match=r"encoding"):
        ran(output, "--data", str(data), "--field", "prompt=Frage", "--field", "completion=Antwort")
    assert "encoding: ???  # such as cp1252" in output.read_text()


def test_speakers_whom_nobody_knows_are_named_by_the_proposed_command(tmp_path: Path) -> None:
    data, output = tmp_path / "a.jsonl", tmp_path / "run.yaml"
    data.write_text(json.dumps({"talk": [{"speaker": one["who"], "text": one["what"]} for one in TURNS]}) + "\n")

    said = write_init(None, str(data), None, output)
    assert "--field" not in said

    source = ran(output, *proposed(said, **{"patient": "patient=user", "the doctor": "the doctor=assistant"}))
    assert source.roles == {"patient": "user", "the doctor": "assistant"} and source.fields.role == "speaker"
    with pytest.raises(ConfigError, match=r"boss is no role; write one of .*user, assistant"):
        ran(output, "--data", str(data), "--role", "patient=boss")


def test_named_keys_keep_the_conversation_and_the_rows_that_were_found(tmp_path: Path) -> None:
    data, output = tmp_path / "a.json", tmp_path / "run.yaml"
    row = {"talk": [{"who": "user", "what": "Hi there, you."}, {"who": "bot", "what": "Hello to you."}]}
    data.write_text(json.dumps({"items": [row] * 3, "n": 1}))

    said = write_init(None, str(data), None, output)
    source = ran(output, *proposed(said, role="role=who", content="content=what"))

    fields = source.fields
    assert (fields.rows, fields.messages, fields.role, fields.content) == ("items", "talk", "who", "what")


def test_a_way_to_read_columns_is_proposed_as_options(tmp_path: Path) -> None:
    data, output = tmp_path / "a.csv", tmp_path / "run.yaml"
    data.write_text("problem,solution,answer\nWhat is 1 + 1?,It is plainly 2.,two of them\n")
    source = ran(output, *proposed(write_init(None, str(data), None, output)))
    assert (source.fields.prompt, source.fields.completion) == ("problem", "answer")


def test_a_first_line_that_is_a_row_has_no_option_proposed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("How deep is it?,Nine metres deep.\nHow wide is it?,Two metres wide.\n")
    said = write_init(None, str(tmp_path / "a.csv"), None, tmp_path / "run.yaml")
    assert "next: write `columns: [prompt, completion]` in place of `fields`" in said and "--field" not in said


def test_a_comment_with_a_placeholder_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "It was a fine day at the port."}\n' * 3)
    said = write_init(None, str(tmp_path / "a.jsonl"), None, tmp_path / "run.yaml")
    assert "about 3 documents" in said and "next: shardline check" in said


@pytest.mark.parametrize("what", REFUSED)
def test_data_that_prepare_would_refuse_are_refused_with_what_to_do(
    what: str, tmp_path: Path, shardline: Callable[..., Any]
) -> None:
    name, content, told = REFUSED[what]
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))

    result = shardline("init", "--yes", "--data", tmp_path / name, "--output", tmp_path / "run.yaml")

    result.assert_refused(name, told)
    assert not (tmp_path / "run.yaml").exists()


Given = tuple[list[str], dict[str, str], dict[str, object]]  # options, what the user fills in, what the YAML has then
GIVEN: dict[str, Given] = {
    "the encoding": (
        ["--data", "cp.csv", "--encoding", "cp1252"],
        {"prompt": "prompt=Frage", "completion": "completion=Antwort"},
        {"encoding": "cp1252", "prompt": "Frage", "completion": "Antwort"},
    ),
    "the columns": (
        ["--data", "cp.csv", "--field", "prompt=Frage", "--field", "completion=Antwort"],
        {},
        {"encoding": "cp1252", "prompt": "Frage", "completion": "Antwort"},
    ),
    "one column": (
        ["--data", "cp.csv", "--field", "prompt=Frage"],
        {"completion": "completion=Antwort"},
        {"encoding": "cp1252", "prompt": "Frage", "completion": "Antwort"},
    ),
    "names with braces": (
        ["--data", "braces.csv"],
        {"prompt": "prompt=a{b}", "completion": "completion=c}"},
        {"prompt": "a{b}", "completion": "c}"},
    ),
    "a way and no encoding": (["--data", "ways.csv"], {}, {"encoding": "cp1252", "completion": "answer"}),
    "some speakers": (
        ["--data", "two", "--role", "Anna=user", "--role=-dash=tool"],
        {"Bob": "Bob=assistant", "a=b": "a=b=user", "--role=--yes": "--role=--yes=user"},
        {"roles": {"Anna": "user", "-dash": "tool", "Bob": "assistant", "a=b": "user", "--yes": "user"}},
    ),
    "speakers that YAML reads as no text": (
        ["--data", "odd.jsonl", "--role", "null=tool"],
        {"True": "True=user", "1e5": "1e5=assistant"},
        {"roles": {"null": "tool", "True": "user", "1e5": "assistant"}},
    ),
    "an encoding that YAML reads as a number": (
        ["--data", "cp.csv", "--encoding", "1252"],
        {"prompt": "prompt=Frage", "completion": "completion=Antwort"},
        {"encoding": "cp1252"},
    ),
    "all else": (
        ["pairs", "--data", "cp.csv", "--encoding", "cp1252", "--model", "some/model", "--no-lora", "--yes"],
        {"prompt": "prompt=Frage", "completion": "completion=Antwort"},
        {"encoding": "cp1252", "prompt": "Frage", "completion": "Antwort"},
    ),
    "adapters": (
        ["--data", "cp.csv", "--model", "some/model", "--lora"],
        {"prompt": "prompt=Frage", "completion": "completion=Antwort"},
        {"encoding": "cp1252", "prompt": "Frage", "completion": "Antwort"},
    ),
}


@pytest.mark.parametrize("what", GIVEN)
def test_the_proposed_command_repeats_all_that_was_given_and_needs_no_other(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cp.csv").write_bytes(b"Frage;Antwort\n" + "Wie groß ist es?;Fünf Meter groß.\n".encode("cp1252") * 9)
    Path("ways.csv").write_bytes("problem,solution,answer\nHow deep is it?,It is nine.,Größer\n".encode("cp1252"))
    Path("braces.csv").write_text("a{b},c}\nHow deep is it?,It is nine metres.\nHow wide?,Two metres.\n")
    odd = [{"role": who, "content": f"It is {who} who says this."} for who in ("True", "1e5", "null")]
    Path("odd.jsonl").write_text(json.dumps({"messages": odd}) + "\n")
    Path("two").mkdir()
    for name, speakers in (("a", ("Anna", "Bob", "-dash")), ("b", ("Anna", "a=b", "--yes"))):
        talk = [{"role": who, "content": f"It is {who} who says this."} for who in speakers]
        Path("two", f"{name}.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    options, filled_in, expected = GIVEN[what]
    first = parsed([*options, "--output", "my run.yaml"])
    run(first)

    words = proposed(capsys.readouterr().out)
    by_key = {f"{key}={capitals}": text for key, text in filled_in.items() for capitals in ("COLUMN", "ROLE")}
    second = parsed([by_key.pop(word, word) for word in words])
    assert {**vars(second), "field": [], "role": [], "encoding": None} == {
        **vars(first),
        "field": [],
        "role": [],
        "encoding": None,
    }
    Path("my run.yaml").unlink()
    run(second)

    config = load_config(RunConfig, Path("my run.yaml"))
    (source,) = config.data.sources
    found = {**source.fields.model_dump(), **source.model_dump()}
    assert {key: found[key] for key in expected} == expected
    assert (config.model.path, config.train.lora is not None) == (first.model, bool(first.lora))
    assert "next: shardline check 'my run.yaml'" in capsys.readouterr().out


def test_a_speaker_whose_name_no_command_can_hold_is_named_in_the_yaml(
    tmp_path: Path, shardline: Callable[..., Any]
) -> None:
    talk = [{"role": who, "content": "How deep is it?"} for who in ("\ud800", "\x1b[2J\x85")]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk}) + "\n")

    result = shardline("init", "--data", tmp_path / "a.jsonl", "--output", tmp_path / "run.yaml")

    assert result.code == 0 and "next: replace each ??? in" in result.out and "\x1b" not in result.out, result
    filled_in = (tmp_path / "run.yaml").read_text().replace("???  # user", "user  # user")
    (tmp_path / "run.yaml").write_text(filled_in)
    (source,) = load_config(RunConfig, tmp_path / "run.yaml").data.sources
    assert set(source.roles) == {one["role"] for one in talk}
