"""`shardline init` with a folder whose files are not alike."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config_loading import load_config
from cluster.errors import ConfigError
from data_prep.fetch.local_files import paths_of
from launch.config import RunConfig
from launch.data.init import write_init

SAID = [{"user": "U1", "text": f"The lamp number {n} costs {n} euros.", "ts": f"{n}.1"} for n in range(9)]
FAQ = "Frage;Antwort{}\nWie tief ist es?;Neun Meter tief.{}\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("place", ["", "g [1]", "what*?/[!a] b"])
@pytest.mark.parametrize("channels", [("general", "shop"), ("[x]",)])
def test_files_with_other_columns_are_named_and_the_proposed_glob_leaves_them_out(
    data: Path, tmp_path: Path, shardline: Callable[..., Any], place: str, channels: tuple[str, ...]
) -> None:
    data = data / place
    for channel in channels:
        (data / channel).mkdir(parents=True)
        (data / channel / "monday.json").write_text(json.dumps(SAID))
    (data / "channels.json").write_text('[{"id": "C1", "name": "general", "members": ["U1"]}]')
    (data / "users.json").write_text('[{"id": "U1", "name": "anna"}, {"id": "U2", "name": "bob"}]')

    refused = shardline("init", "--yes", "--data", data, "--output", tmp_path / "run.yaml")
    named = ", ".join(f"{channel}/monday.json" for channel in channels)
    refused.assert_refused(f"{named} with running text", "channels.json, users.json with")

    proposed = re.search(r"such as --data (.*)", refused.err)
    assert proposed is not None
    said = write_init(None, shlex.split(proposed[1])[0], None, tmp_path / "run.yaml")
    assert f"about {9 * len(channels)} documents" in said
    assert len(paths_of(load_config(RunConfig, tmp_path / "run.yaml").data.sources[0], Counter())) == len(channels)


def test_tables_with_a_column_more_are_alike_and_texts_beside_them_are_told(data: Path, tmp_path: Path) -> None:
    (data / "a.csv").write_text(FAQ.format("", ""))
    (data / "b.csv").write_text(FAQ.format(";Quelle;Datum", ";Wir;1.1.2020"))
    (data / "README.md").write_text("What these are.\n")
    said = write_init(None, str(data), None, tmp_path / "run.yaml")
    assert "--field prompt=COLUMN" in said and "README.md holds running text" in said


def test_tables_of_other_columns_in_one_folder_are_refused_unless_the_columns_are_named(
    data: Path, tmp_path: Path
) -> None:
    (data / "a.csv").write_text(FAQ.format("", ""))
    (data / "b.csv").write_text("Title,Body\nA day at the port,It was a fine day there.\n" * 9)
    with pytest.raises(
        ConfigError, match=r"b\.csv with the columns Title, Body; a\.csv with the columns Frage, Antwort"
    ):
        write_init(None, str(data), None, tmp_path / "run.yaml")


def test_speakers_and_the_encoding_of_every_file_are_asked_for(data: Path, tmp_path: Path) -> None:
    for name, speakers in (("a", ("Anna", "Bob")), ("b", ("Anna", "Çelik"))):
        talk = [{"role": who, "content": f"It is {who} who says this."} for who in speakers]
        (data / f"{name}.jsonl").write_text(json.dumps({"messages": talk}, ensure_ascii=False) + "\n", "cp1252")
    text = "".join(write_init(None, str(data), None, tmp_path / "run.yaml"))
    assert "--encoding cp1252" in text and text.count("=ROLE") == 3


def test_a_file_that_cannot_be_read_is_told_and_does_not_decide(data: Path, tmp_path: Path) -> None:
    (data / "about.json").write_text('{"name": "lakes"}')
    (data / "rows.jsonl").write_text('{"question": "How deep is it?", "answer": "Nine metres."}\n' * 3)
    said = write_init(None, str(data), None, tmp_path / "run.yaml")
    assert "pairs, about 3 documents" in said and "about.json cannot be read: one JSON value, not rows" in said
    assert not load_config(RunConfig, tmp_path / "run.yaml").data.sources[0].fields.given
