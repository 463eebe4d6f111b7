"""From a folder of documents to a model that answers, with a power cut on the way."""

from __future__ import annotations

import gzip
import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from data_prep.shards import ShardReader, read_manifest
from launch.__main__ import main
from tests.training.rank_programs.bits import read_weights
from training.checkpoints.layout import newest_checkpoint, read_commit
from training.evaluate.harness import TaskRequest, add, check_tasks, linked, run_harness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[3]
CONVERSATIONS = ROOT / "examples" / "boutique" / "conversations.jsonl"
STEPS = 12  # some of them after the power cut, however late it comes


def write_corpus(folder: Path) -> Path:
    """Write a few texts, and the first conversations of the boutique."""
    folder.mkdir()
    shutil.copy(ROOT / "LICENSE", folder / "license.txt")
    lines = CONVERSATIONS.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "conversations.jsonl").write_text("".join(lines[:150]), encoding="utf-8")
    return folder


def shardline(verb: str, run: Any, *arguments: str) -> None:
    assert main([verb, str(run.yaml), *arguments]) == 0


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, run_in: Callable[..., Any]) -> Any:
    """The run of this story, told to its end."""
    folder = tmp_path_factory.mktemp("story")
    run = run_in(
        folder,
        data={
            "sources": [{"path": str(write_corpus(folder / "corpus"))}],
            "row_tokens": 128,
            "validation_fraction": 0.1,
            "tokenizer": {"train": {"vocab_size": 512}},
        },
        model={
            "new": {
                "model_type": "llama",
                "config": {
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
                },
            }
        },
        train={
            "steps": STEPS,
            "global_batch_rows": 8,
            "learning_rate": 3e-3,
            "save_every_steps": 3,
            "validation_rows": 4,
        },
        evaluate={"rows": 4, "samples": 2, "sample_tokens": 4},
        export={"dtype": "fp32"},
    )
    shardline("prepare", run)
    run.kill_when(lambda run: 4 in run.steps())
    assert run.train("--profile", str(STEPS)) == 0, run.log.read_text()
    for verb in ("export", "evaluate", "report"):
        shardline(verb, run)
    return run


def test_every_step_was_taken_once_though_the_power_went_in_the_middle(told: Any) -> None:
    assert told.steps() == list(range(1, STEPS + 1))
    assert [end["reason"] for end in told.ends()] == ["done"]


def test_a_step_tells_what_its_parts_took_and_the_one_that_was_named_left_a_trace(told: Any) -> None:
    line = json.loads(told.paths.metrics.read_text().splitlines()[-1])
    assert 0 < line["forward_s"] + line["backward_s"] <= line["step_s"]
    assert line["update_s"] > 0
    traces = sorted(told.paths.profile.iterdir())
    assert [trace.name for trace in traces] == [f"step-{STEPS:06d}-rank-0000{rank}.json.gz" for rank in (0, 1)]
    names = {event.get("name", "") for event in json.loads(gzip.decompress(traces[0].read_bytes()))["traceEvents"]}
    assert "aten::linear" in names


def test_the_export_answers_as_the_checkpoints_own_weights_do(told: Any) -> None:
    checkpoint = newest_checkpoint(told.paths.checkpoints)
    weights = read_weights(checkpoint, read_commit(checkpoint).shapes)
    exported = AutoModelForCausalLM.from_pretrained(told.paths.export, dtype=torch.float32).eval()
    fresh = AutoModelForCausalLM.from_config(exported.config).eval()
    fresh.load_state_dict(weights, strict=not exported.config.tie_word_embeddings)
    reader = ShardReader(told.paths.shards, read_manifest(told.paths.shards), "train")
    row = torch.from_numpy(reader.rows([0]).input_ids)
    with torch.inference_mode():
        assert (exported(row).logits - fresh(row).logits).abs().max() <= 1e-5


def test_tokenizer_and_chat_template_survive_the_export(told: Any) -> None:
    before = AutoTokenizer.from_pretrained(told.paths.shards / "tokenizer")
    after = AutoTokenizer.from_pretrained(told.paths.export)
    messages = [{"role": "user", "content": "Wo ist die Tür?"}, {"role": "assistant", "content": "There."}]
    assert "<|im_start|>assistant" in after.apply_chat_template(messages, tokenize=False)
    assert after.apply_chat_template(messages)["input_ids"] == before.apply_chat_template(messages)["input_ids"]


class SayAtThird(LogitsProcessor):  # type: ignore[misc]
    """Make a model say one token as its third."""

    def __init__(self, token: int, stops: list[int], prompt_tokens: int) -> None:
        self.stops = stops
        self.token, self.place = token, prompt_tokens + 2

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.stops] = -1e4  # by itself the model may end at once
        if input_ids.shape[1] == self.place:
            scores[:, self.token] = 1e4
        return scores


@pytest.mark.parametrize("said", ["<|im_end|>", "<|endoftext|>"])
def test_an_answer_stops_where_its_turn_ends(told: Any, said: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(told.paths.export)
    model = AutoModelForCausalLM.from_pretrained(told.paths.export)
    prompt = tokenizer("Is anybody there?", return_tensors="pt")
    token = tokenizer.convert_tokens_to_ids(said)
    stops = [tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    force = LogitsProcessorList([SayAtThird(token, stops, prompt.input_ids.shape[1])])
    output = model.generate(**prompt, max_new_tokens=10, do_sample=False, logits_processor=force)
    new = output[0, prompt.input_ids.shape[1] :].tolist()
    assert len(new) == 3 and new[-1] == token


def test_the_exported_configuration_is_read_by_old_and_new_transformers(told: Any) -> None:
    values = json.loads((told.paths.export / "config.json").read_text())
    assert values["architectures"] == ["LlamaForCausalLM"]
    assert values["rope_parameters"]["rope_theta"] == values["rope_theta"] == 50000.0
    assert values["rope_scaling"] is None


def test_colleagues_can_read_every_exported_file(told: Any) -> None:
    for path in told.paths.export.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444, path


def test_the_evaluation_scores_base_and_tuned_model_on_the_same_rows(told: Any) -> None:
    result = json.loads(told.paths.evaluation.read_text())
    assert (result["rows"], len(result["samples"])) == (4, 2)
    assert result["models"]["tuned"]["loss"] < result["models"]["base"]["loss"]
    assert 0 <= result["models"]["tuned"]["stop_rate"] <= 1


def test_what_cannot_be_evaluated_is_refused_once_and_not_by_each_rank(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"{{name: a, folder: {tmp_path / 'run'}, data: {{sources: [{{path: a.txt}}]}}, model: {{path: m}}}}"
    )
    command = [sys.executable, "-m", "launch", "evaluate", str(tmp_path / "run.yaml"), "--ranks", "3"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count(" E "), done.stderr.count("manifest.json")) == (2, 1, 1), done.stderr


def test_two_ranks_find_what_one_process_finds(told: Any) -> None:
    alone = json.loads(told.paths.evaluation.read_text())
    command = [sys.executable, "-m", "launch", "evaluate", str(told.yaml), "--ranks", "2"]
    done = subprocess.run(
        [*command, "-o", "train.precision=fp32"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shared = json.loads(told.paths.evaluation.read_text())
    assert (alone["ranks"], shared["ranks"], shared["documents"]) == (1, 2, alone["documents"])
    for model in ("base", "tuned"):
        assert shared["models"][model]["loss"] == pytest.approx(alone["models"][model]["loss"], rel=1e-5)
        assert shared["models"][model]["bits_per_byte"] == pytest.approx(alone["models"][model]["bits_per_byte"])
    assert [sample["tuned"] for sample in shared["samples"]] == [sample["tuned"] for sample in alone["samples"]]


def test_the_harness_runs_a_users_own_task_on_the_export_though_a_rank_asks(
    told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    request = TaskRequest(tasks=check_tasks([str(write_task(tmp_path))]), as_chat=True)
    model = {"pretrained": str(linked(told.paths.export, tmp_path / "model"))}
    found: dict[str, dict[str, float]] = {}
    add(found, "tuned", run_harness(request, model, tmp_path / "out")["letters"])
    assert found["acc"].keys() == {"tuned", "stderr_tuned"}


def write_task(folder: Path) -> Path:
    """Write a task of lm-evaluation-harness over a local file."""
    rows = [{"question": f"Say {letter}", "choices": [letter, "zz"]} for letter in "abcd"]
    (folder / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "letters",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "letters.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "letters.yaml").write_text(json.dumps(values))  # JSON is YAML
    return folder / "letters.yaml"


def test_the_last_checkpoint_carries_the_loss_that_the_evaluation_finds(told: Any) -> None:
    carried = read_commit(newest_checkpoint(told.paths.checkpoints)).resumed().validation_loss
    evaluated = json.loads(told.paths.evaluation.read_text())["models"]["tuned"]["loss"]
    assert carried == pytest.approx(evaluated, rel=1e-2)  # trained in bf16, evaluated in fp32


def test_the_report_is_one_page_that_names_the_run(told: Any) -> None:
    page = told.paths.report.read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert "trial" in page


def test_the_runs_folder_can_be_named_instead_of_its_yaml(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(told.paths.root)]) == 0
    assert f"{STEPS}" in capsys.readouterr().out
