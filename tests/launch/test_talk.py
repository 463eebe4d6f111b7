"""`generate` and `chat` with a model that was trained on a few conversations until it knew them by heart."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from data_prep.encode.tokenizer import train_tokenizer
from launch.__main__ import main

Command = Callable[..., Any]  # returns a Result: see conftest.py

SAID = {"hello": "good day", "what ends?": "every run", "and then?": "café 你好 👋!"}


def conversations() -> list[list[dict[str, str]]]:
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in SAID.items()]
    system = {"role": "system", "content": "be brief"}
    return [*turns, [*turns[0], *turns[1]], [*turns[1], *turns[2]], [system, *turns[0]]]


def learnt(folder: Path, tokenizer: Any) -> dict[str, torch.Tensor]:
    """Return the model's weights once it knows the conversations; its first ones go into the folder."""
    texts = [tokenizer.apply_chat_template(said, tokenize=False) for said in conversations()]
    rows = [tokenizer.encode(text, return_tensors="pt") for text in texts]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=96, eos_token_id=0, **shape)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(140):
        torch.autograd.backward(torch.stack([model(row, labels=row).loss for row in rows]).mean())
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, write_checkpoint: Callable[..., Path]) -> Path:
    """Return the YAML of an exported run."""
    folder = tmp_path_factory.mktemp("talk")
    weights = learnt(folder / "base", train_tokenizer([*SAID, *SAID.values()], 300))
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": said}) + "\n" for said in conversations()))
    data = {"sources": [{"path": str(folder / "chats.jsonl")}], "row_tokens": 96, "validation_fraction": 0.0}
    values = {"name": "talk", "folder": str(folder / "run"), "data": data, "model": {"path": str(folder / "base")}}
    path = folder / "run.yaml"
    path.write_text(json.dumps({**values, "export": {"dtype": "fp32"}}))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    assert main(["prepare", str(path)]) == 0
    write_checkpoint(folder / "run" / "checkpoints", weights)
    assert main(["export", str(path)]) == 0
    root.handlers[:] = handlers
    root.setLevel(level)
    return path


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set what is piped into the next command."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_answers_are_those_that_were_learnt_and_end_where_the_model_ends_them(
    trained: Path, shardline: Command
) -> None:
    prompts = [word for said in SAID for word in ("--prompt", said)]
    result = shardline("generate", trained, *prompts)
    assert result.out == "".join(f"> {said}\n{answer}\n\n" for said, answer in SAID.items())
    assert shardline("generate", trained.parent / "run" / "export", *prompts).out == result.out
    assert shardline("generate", trained, "--prompt", "hello", "--system", "be brief").out == "> hello\ngood day\n\n"
    assert shardline("generate", trained, "--prompt", "what ends?", "--tokens", "2").out.endswith(" [...]\n\n")


def test_the_base_answers_beside_the_tuned_model(trained: Path, shardline: Command, tmp_path: Path) -> None:
    out = shardline("generate", trained, "--prompt", "hello", "--compare", "--tokens", "8").out.splitlines()
    assert out[1].startswith("base: ")
    assert out[2] == "tuned: good day"
    assert out[1].removeprefix("base: ") != "good day"
    shardline("generate", trained.parent / "base", "--compare", "--prompt", "a").assert_refused("name the run, by its")


def test_a_file_of_prompts_becomes_a_file_of_answers_in_its_order(
    trained: Path, shardline: Command, tmp_path: Path
) -> None:
    lines = [{"prompt": said} for said in SAID] + [{"messages": said[:-1]} for said in conversations()]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = shardline("generate", trained, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert result.code == 0
    assert f"{len(lines)} answers, {len(lines)} of them ended by the model" in result.out
    expected = [*SAID.values(), *(said[-1]["content"] for said in conversations())]
    found = records(tmp_path / "out.jsonl")
    assert [line["answer"] for line in found] == expected
    assert [{key: line[key] for key in asked} for line, asked in zip(found, lines, strict=True)] == lines
    assert not (tmp_path / "out.jsonl.unfinished").exists()


def test_an_interrupted_file_of_answers_continues_where_it_was(
    trained: Path, shardline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.txt").write_text("\n".join(SAID))
    command = ["generate", trained, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl", "--batch", "1"]
    answer, asked = LlamaForCausalLM.generate, []

    def interrupted(self: Any, *given: Any, **settings: Any) -> Any:
        asked.append(given)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answer(self, *given, **settings)

    monkeypatch.setattr(LlamaForCausalLM, "generate", interrupted)
    assert shardline(*command).code == 130
    assert not (tmp_path / "out.jsonl").exists()
    with (tmp_path / "out.jsonl.unfinished").open("a") as stream:
        stream.write('{"place": 2, "rec')  # a line that was torn
    said = shardline(*command).out
    assert "2 of 3 answers are in" in said
    assert len(asked) == 4
    assert [line["answer"] for line in records(tmp_path / "out.jsonl")] == list(SAID.values())
    assert shardline(*command).code == 0  # nothing is left to continue: it answers all again
    assert len(asked) == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", ""], ["--prompt: empty"]),
        (["--prompt", "a", "--prompt", " \n"], ["--prompt 2: empty"]),
        (["--prompt", "\udcff"], ["--prompt: not valid UTF-8"]),
        (["--prompt", "a", "--top-p", "0.5"], ["--top-p: has no effect at temperature 0"]),
        (["--prompt", "a", "--seed", "1"], ["--seed: has no effect at temperature 0"]),
        (["--prompt", "many words " * 50], ["--prompt: the prompt has", "the model sees 96"]),
        (["--prompt", "a", "--output", "out.txt"], ["--output out.txt: answers are JSON lines"]),
        (["--input", "in.csv"], ["--input in.csv: expected a .txt"]),
        (["--prompt", "a", "--system", " "], ["--system: empty"]),
    ],
)
def test_what_cannot_be_answered_is_refused(
    trained: Path, shardline: Command, options: list[str], words: list[str]
) -> None:
    shardline("generate", trained, *options).assert_refused(*words)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--tokens", "0"),
        ("--temperature", "nan"),
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--top-p", "nan"),
        ("--top-k", "0"),
        ("--repetition-penalty", "0"),
        ("--repetition-penalty", "inf"),
        ("--seed", "-3"),
        ("--stop", ""),
        ("--batch", "none"),
    ],
)
def test_an_option_out_of_range_is_named(
    shardline: Command, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    with pytest.raises(SystemExit):
        shardline("generate", "run.yaml", option, value)
    assert f"argument {option}: {value!r} is".replace("'' ", "") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"one\n\xff\n", "a.txt:2: not valid UTF-8"),
        ("a.txt", b"\n \n", "a.txt: no prompts"),
        ("a.jsonl", b'{"prompt": "a"}\n{"promt": "b"}', "a.jsonl:2: no prompt; each line is"),
        ("a.jsonl", b"{", "a.jsonl:1: no JSON"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "is no message of a system, user or assistant"),
        ("a.jsonl", b'{"messages": [{"role": "assistant", "content": "a"}]}', "ends with a user's message"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(
    trained: Path, shardline: Command, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    shardline("generate", trained, "--input", tmp_path / name).assert_refused(words)


def test_empty_lines_of_standard_input_are_skipped_and_told(
    trained: Path, shardline: Command, typed: Callable[[str], None]
) -> None:
    typed("hello\n\nwhat ends?\n")
    result = shardline("generate", trained)
    assert result.out == "> hello\ngood day\n\n> what ends?\nevery run\n\n"
    assert "1 empty line skipped" in result.err


def test_an_export_with_another_template_than_the_rows_is_refused(
    trained: Path, shardline: Command, tmp_path: Path
) -> None:
    shutil.copytree(trained.parent / "run", tmp_path / "run")
    template = tmp_path / "run" / "export" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "bot"))
    for verb in ("generate", "chat"):
        shardline(verb, tmp_path / "run").assert_refused("chat template is not the one that the run was trained with")


def test_an_adapter_that_does_not_fit_the_model_is_refused(trained: Path, shardline: Command, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(trained.parent / "base"), LoraConfig(r=2))
    model.save_pretrained(tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(trained.parent / "base" / name, tmp_path / "adapter")
    ask = ["generate", tmp_path / "adapter", "--prompt", "hello", "--compare", "--tokens", "3"]
    base, tuned = shardline(*ask).out.splitlines()[1:3]
    assert base.removeprefix("base: ") == tuned.removeprefix("tuned: ")  # a new adapter changes nothing
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.7"): tensor for name, tensor in load_file(weights).items()}, weights)
    shardline(*ask).assert_refused("layers.7", "was not applied to the model")


def test_a_chat_through_a_pipe_remembers_and_is_saved_as_training_data(
    trained: Path, shardline: Command, typed: Callable[[str], None], tmp_path: Path
) -> None:
    saved = tmp_path / "saved.jsonl"
    said = ["hello", "and then?", "/undo", "what ends?", f"/save {saved}", f"/save {saved}"]
    typed("\n".join([*said, "/reset", "hello", f"/save {saved}", "/quit", "hello"]))
    result = shardline("chat", trained)
    assert (result.code, result.out.splitlines()[0]) == (0, "good day")
    assert result.out.splitlines()[2:] == ["every run", "good day"]
    assert [line["messages"] for line in records(saved)] == [conversations()[3], conversations()[0]]
    again = ["-o", f"data.sources=[{{path: {saved}}}]", "-o", f"folder={tmp_path}/again"]
    assert "conversations from messages" in shardline("check", trained, *again).out
    assert shardline("prepare", trained, *again).code == 0


def test_a_chat_that_outgrows_the_model_drops_its_oldest_turns_and_says_so(
    trained: Path, shardline: Command, typed: Callable[[str], None]
) -> None:
    typed("hello\n" * 8)
    result = shardline("chat", trained, "--tokens", "16", "--stop", "\\n")
    assert result.code == 0
    assert len(result.out.splitlines()) == 8
    assert "longer than the 96 tokens that the model sees: the oldest turn is left out now" in result.err
    typed("hello " * 60)
    shardline("chat", trained).assert_refused("the model sees 96")


def test_a_chat_with_a_model_of_plain_text_continues_it(
    tiny_model: Path, shardline: Command, typed: Callable[[str], None], tmp_path: Path
) -> None:
    typed(f"a run that\n/save {tmp_path}/a.jsonl\n")
    result = shardline("chat", tiny_model, "--tokens", "5")
    assert result.code == 0
    (saved,) = records(tmp_path / "a.jsonl")
    assert saved["text"].startswith("a run that")
    assert saved["text"].endswith(result.out.strip())
    shardline("chat", tiny_model, "--system", "be brief").assert_refused("knows no system message")
