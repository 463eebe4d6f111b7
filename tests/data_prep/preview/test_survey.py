"""What is wrong with a corpus is told by its first records, before anything is prepared or a model is loaded."""

from __future__ import annotations

import gzip
import json
import re
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.environment import child_environment
from cluster.errors import DataError
from cluster.model_files import HUB_TIMEOUT_S
from data_prep.config import DataConfig
from data_prep.preview.file_samples import RECORDS, SAMPLE_BYTES, spread
from data_prep.preview.survey import survey

ROOT = Path(__file__).resolve().parents[3]
Config = Callable[..., DataConfig]


def said(config: DataConfig) -> str:
    return "\n".join(survey(config, None))


def chat(*roles: str) -> dict[str, Any]:
    return {
        "id": 7,
        "messages": [{"role": role, "content": f"{role} says"} for role in roles],
        "topic": "what the sea is like",
    }


def test_shape_ignored_columns_and_what_is_trained_are_told(config_of: Config, lines_file: Callable[..., Path]) -> None:
    told = said(config_of(lines_file(*[chat("user", "assistant")] * 9, b"", {"messages": 5})))
    assert "1 file (1 .jsonl)" in told
    assert "conversations from messages\n               columns with text that are not used: topic\n" in told
    assert "of 11 sampled records, 9 can be used; 1 blank line; 1 not a list of role and content;" in told
    assert re.search(r"\d+% of their tokens are trained", told)


def test_the_estimate_is_near_what_preparing_gives(
    config_of: Config, prepared: Callable[..., Any], tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.csv", "d.parquet")]
    texts = [f"{n} geese sing over the lazy dog. " * (n % 9 + 1) for n in range(3000)]
    rows = b"".join(json.dumps({"text": f"a {text}"}).encode() + b"\n" for text in texts)
    paths[0].write_bytes(rows)
    paths[1].write_bytes(gzip.compress(rows.replace(b"a ", b"b ")))
    paths[2].write_text("text\n" + "".join(f"c {text}\n" for text in texts))
    pq.write_table(pa.table({"text": [f"d {text}" for text in texts]}), paths[3])
    for path in paths:
        told = said(config_of(path))
        documents, tokens = (
            int(re.search(rf"([\d,]+) {what}", told)[1].replace(",", ""))  # type: ignore[index]
            for what in ("documents", "tokens")
        )
        found = prepared(path, into=f"data-{path.name}").documents[str(path)]
        assert documents == pytest.approx(found["kept"], rel=0.15), path
        assert tokens == pytest.approx(found["tokens"], rel=0.15), path


WRONG: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "false gz": ("a.jsonl.gz", b"no gzip at all", {}, r"nothing to train on .*1 damaged compression"),
    "false text gz": ("a.txt.gz", b"no gzip at all", {}, r"nothing to train on .*1 damaged compression"),
    "empty gz": ("a.jsonl.gz", gzip.compress(b""), {}, r"nothing to train on in 0 sampled records"),
    "empty": ("a.jsonl", b"", {}, r"the corpus is empty"),
    "unknown columns": ("a.jsonl", b'{"foo": "x", "bar": "y"}\n', {}, r"columns seen: foo, bar"),
    "unknown fields": ("a.jsonl", b'{"foo": "x"}\n', {"fields": {"text": "body"}}, r"no columns body"),
    "no rows": ("a.jsonl", b"[1, 2]\n" * 9, {}, r"none of its first 200 records is a row"),
    "no assistant": ("a.jsonl", json.dumps(chat("user", "user")).encode() + b"\n", {}, r"assistant"),
    "blank": ("a.jsonl", b'{"text": ""}\n{"text": " "}\n', {}, r"nothing to train on in 2 .*2 empty"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_file_is_told(config_of: Config, tmp_path: Path, kind: str) -> None:
    name, content, source, words = WRONG[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        said(config_of({"path": str(tmp_path / name), **source}))


def test_a_template_that_does_not_fit_is_told(
    config_of: Config, lines_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    with pytest.raises(DataError, match="the chat template"):
        said(config_of(lines_file(chat("user", "assistant")), chat_template=str(tmp_path / "t.jinja")))


def test_a_path_that_matches_nothing_is_told(config_of: Config, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file, folder or match"):
        said(config_of(tmp_path / "*.jsonl"))


def test_of_large_files_only_the_beginning_is_read(config_of: Config, tmp_path: Path) -> None:
    row = json.dumps({"text": "a goose sings. " * 20}).encode() + b"\n"
    (tmp_path / "a.jsonl").write_bytes(row * 20_000)
    (tmp_path / "b.txt").write_bytes(b"a goose sings.\n" * 500_000)
    damaged = bytearray((tmp_path / "a.jsonl").read_bytes())
    damaged[SAMPLE_BYTES * 2] = 0xFF  # nobody sees it
    (tmp_path / "a.jsonl").write_bytes(damaged)

    told = said(config_of(tmp_path / "a.jsonl", tmp_path / "b.txt"))

    assert f"of {RECORDS} sampled records, {RECORDS} can be used;" in told
    assert re.search(r"about 20,000 documents, [345],\d00,000 tokens", told)


def test_a_source_that_is_wrong_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip at all")
    (tmp_path / "run.yaml").write_text(
        f"name: wrong\nfolder: {tmp_path}/run\ndata:\n  sources: [{{path: {tmp_path}/a.jsonl.gz}}]\n"
        "  tokenizer: {train: {vocab_size: 600}}\nmodel:\n  new: {model_type: llama, config: {hidden_size: 64}}\n"
    )
    code = "import sys; from launch.__main__ import main; "
    code += f"print(main(['check', {str(tmp_path / 'run.yaml')!r}]), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "2 False", run.stderr
    assert "nothing to train on in 1 sampled record" in run.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["model", "dataset"])
def test_a_hub_that_never_answers_is_given_up_before_long(tmp_path: Path, key: str) -> None:
    """Each connection costs HUB_TIMEOUT_S: two of them are 3 seconds."""
    new = "{new: {model_type: llama, config: {hidden_size: 64}}}"
    source, model = ("{path: x.txt}", "{path: owner/name}") if key == "model" else ("{dataset: owner/name}", new)
    tokenizer = "" if key == "model" else "  tokenizer: {train: {vocab_size: 600}}\n"
    yaml = f"name: away\nfolder: {tmp_path}/run\ndata:\n  sources: [{source}]\n{tokenizer}model: {model}\n"
    (tmp_path / "run.yaml").write_text(yaml)
    asked: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=hold, args=(server, asked), daemon=True).start()
        environment = child_environment({"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"})
        run = subprocess.run(
            [sys.executable, "-m", "launch", "check", str(tmp_path / "run.yaml")],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 2, run.stderr
    assert "hf download owner/name" in run.stderr.splitlines()[-1]
    assert 1 <= len(asked) <= 2
    assert HUB_TIMEOUT_S <= 1.5


def hold(server: socket.socket, asked: list[socket.socket]) -> None:
    """Take connections and say nothing."""
    while True:
        try:
            asked.append(server.accept()[0])
        except OSError:
            return


def test_a_folder_of_small_uneven_files_is_estimated_from_all_of_them(config_of: Config, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(35):
        (folder / f"{n:02d}.md").write_text(f"# {n}\n" + "a goose sings. " * (1 if n % 7 else 900))
    rows = [json.dumps({"text": f"the goose {n} sings. "}) for n in range(50)]
    (folder / "b.jsonl").write_text("\n".join(rows))
    (folder / "c.csv").write_text("question,answer\n" + "".join(f"who is {n}?,goose {n}\n" for n in range(60)))
    told = said(config_of({"path": str(folder), "epochs": 2.0}))
    assert "about 140 documents" in told and "before weights and epochs" in told  # 35 + 50 + 60, two digits
    assert "from question, answer" in told


def test_where_files_are_large_one_of_each_suffix_is_looked_into(tmp_path: Path) -> None:
    for name in [*(f"{n:02d}.jsonl" for n in range(60)), "zz.md", "05a.csv"]:
        (tmp_path / name).write_bytes(b"x" * (SAMPLE_BYTES if name.endswith("jsonl") else 9))
    chosen = [name for name, _ in spread([(path.name, path) for path in sorted(tmp_path.iterdir())])]
    assert 5 <= len(chosen) <= 11 and {"zz.md", "05a.csv"} <= set(chosen)


def test_documents_that_are_files_are_counted_as_files(config_of: Config, tmp_path: Path) -> None:
    for n in range(90):
        (tmp_path / f"{n:03d}.txt").write_text(f"{n} " + "a goose sings. " * (40 if n % 9 == 0 else 2))
    assert "about 90 documents" in said(config_of(tmp_path / "*.txt"))


def test_a_small_archive_is_looked_into_and_an_empty_one_refused(config_of: Config, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", "".join(json.dumps({"text": f"goose {n} sings"}) + "\n" for n in range(30)))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.jpg", "no text")
    assert "about 30 documents" in said(config_of(tmp_path / "a.zip"))
    with pytest.raises(DataError, match=r"nothing to read in its archives \(1 .jpg\)"):
        said(config_of(tmp_path / "b.zip"))
