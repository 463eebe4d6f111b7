"""What is found in replies: labels, repetitions, nearness to a reference, and the training split word for word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.shards import ShardReader, read_manifest
from launch.models.data_probes import new_private_data, probe
from training.evaluate.held_out_prompts import Document, HeldOutPrompt, answers_in, held_out_prompts, one_of_each
from training.evaluate.labels import LabelTask, choose_labels, figures, find_labels, task_record
from training.evaluate.memorised import SPAN_TOKENS, memorised_spans
from training.evaluate.replies import answer_all, has_text_metrics, nearness, repeated_share
from training.generate.answers import Answer, answer
from training.generate.sampling import Sampling
from training.step.packed_model import PackedModel


@pytest.fixture(scope="module")
def shards(tiny_shards: Callable[..., Path]) -> Path:
    return tiny_shards(rows=40, validation_rows=12, row_tokens=128)


@pytest.fixture(scope="module")
def held_out(shards: Path) -> ShardReader:
    return ShardReader(shards, read_manifest(shards), "validation")


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def pairs(labels: list[int]) -> list[HeldOutPrompt]:
    return [HeldOutPrompt(prompt=[5, 6, n % 9], reference=[label, 1], is_single=True) for n, label in enumerate(labels)]


def test_replies_in_batches_are_those_of_one_prompt_at_a_time(
    model: Any, tokenizer: Any, held_out: ShardReader
) -> None:
    prompts = held_out_prompts(held_out, False, 10, 12)
    uneven = [HeldOutPrompt(prompt=p.prompt[n:], reference=p.reference) for n, p in enumerate(prompts)]
    found = answer_all(model, tokenizer, uneven, 12, "replies")
    assert found == [answer(model, tokenizer, one.prompt, Sampling(tokens=12)) for one in uneven]


def test_prompts_are_spread_over_the_rows_before_a_row_gives_a_second_one(held_out: ShardReader) -> None:
    prompts = held_out_prompts(held_out, False, 12, 12)
    starts = [held_out.rows([row]).input_ids[0, :32].tolist() for row in range(12)]
    assert sorted(prompt.prompt for prompt in prompts) == sorted(starts)


def test_every_answer_of_a_conversation_has_all_that_precedes_it_as_its_prompt() -> None:
    mask = np.array([False, True, True, False, False, True])
    document = Document(np.arange(6, dtype=np.int32), answers_in(mask), is_single=False)
    asked = [document.prompt(answer) for answer in document.answers]
    assert [(one.prompt, one.reference) for one in asked] == [([0], [1, 2]), ([0, 1, 2, 3, 4], [5])]


def test_conversations_are_not_judged_by_a_greeting_that_opens_them_all() -> None:
    documents = [conversation([1, 2, number, 3]) for number in range(10, 16)]
    asked = [one.prompt for one in one_of_each(documents, longest=8)]
    assert asked == [[1, 2, 10], [1], *([1, 2, number] for number in range(12, 16))]


def test_a_prompt_that_leaves_no_room_for_a_reply_is_passed_over_while_there_is_another() -> None:
    asked = one_of_each([conversation([1, 2, 3, 4])], longest=2)
    assert [one.prompt for one in asked] == [[1]]
    assert len(one_of_each([conversation([1, 2, 3, 4])], longest=0)) == 1


def conversation(ids: list[int]) -> Document:
    """Return one of two answers, the second and the fourth token."""
    return Document(np.array(ids, dtype=np.int32), [(1, 2), (3, 4)], is_single=False)


@pytest.mark.parametrize("count", [5, 90])
def test_a_reply_that_repeats_fifty_tokens_of_a_training_row_is_found_with_the_row(shards: Path, count: int) -> None:
    reader = ShardReader(shards, read_manifest(shards), "train")
    row = reader.rows([17]).input_ids[0].tolist()
    whole, short = row[20 : 20 + SPAN_TOKENS + count], row[20 : 20 + SPAN_TOKENS - 1]
    changed = [*row[:40], 300, *row[41:80], 301, *row[81:110]]
    found, *others = memorised_spans(reader, [[7, 7, 7, *whole], short, changed, []])
    assert found is not None and others == [None] * 3
    ids = reader.rows([found]).input_ids[0].tolist()
    assert any(ids[n : n + SPAN_TOKENS] == whole[k : k + SPAN_TOKENS] for n in range(79) for k in range(count + 1))


def test_few_short_replies_are_labels_and_are_scored_beside_the_commonest(model: Any, tokenizer: Any) -> None:
    task = find_labels(pairs([40, 40, 41] * 10))
    assert task is not None and len(task.labels) == 2
    record = task_record(task, tokenizer)
    assert record["majority"]["accuracy"] == pytest.approx(2 / 3)
    assert record["majority"]["macro_f1"] == pytest.approx(0.4)
    packed = PackedModel(model, model, model.device)
    chosen = choose_labels(packed, packed.parts, task, "labels")
    assert len(chosen) == 30 and set(chosen) <= {0, 1}


def test_the_label_is_chosen_that_the_model_would_itself_say(tiny_model: Path, tokenizer: Any) -> None:
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    said = [HeldOutPrompt(prompt=[5, 6, n], reference=[0, 1], is_single=True) for n in range(7, 12)]
    best = [int(fresh(fresh.dummy_inputs["input_ids"].new_tensor([p.prompt])).logits[0, -1].argmax()) for p in said]
    task = LabelTask(labels=[(label,) for label in sorted({*best, 50, 51})], prompts=said)
    packed = PackedModel(fresh, fresh, fresh.device)
    assert [task.labels[number][0] for number in choose_labels(packed, packed.parts, task, "labels")] == best


def test_long_or_ever_new_replies_and_conversations_are_no_labels() -> None:
    assert find_labels(pairs(list(range(40, 80)))) is None
    assert find_labels(pairs([40, 41] * 5)) is None
    several = [HeldOutPrompt(prompt=p.prompt, reference=p.reference) for p in pairs([40, 41] * 20)]
    assert find_labels(several) is None


def test_a_label_that_is_never_chosen_has_an_f1_of_nought() -> None:
    assert figures([0, 0, 0, 0], [0, 0, 0, 1]) == {"accuracy": 0.75, "macro_f1": pytest.approx((6 / 7) / 2)}


@pytest.mark.parametrize("text", ["Die Tür ist zu.", "今日は天気がいい", "วันนี้อากาศดี", "Сегодня тепло"])
def test_a_reply_that_is_its_reference_scores_one_in_any_script(text: str) -> None:
    found = nearness([text], [text])
    assert found["exact_match"] == found["rouge_l"] == 1
    assert found["chrf"] == pytest.approx(1)


def test_half_a_chinese_sentence_is_half_of_it_for_rouge() -> None:
    assert nearness(["今日天气"], ["今日天气很好啊呀"])["rouge_l"] == pytest.approx(2 / 3)


def test_a_reply_that_goes_round_in_circles_is_mostly_repeated(tokenizer: Any) -> None:
    circle = Answer(text="a run that ends is worth more " * 9, stopped=False)
    assert repeated_share(tokenizer, circle) > 0.7
    assert repeated_share(tokenizer, Answer(text="", stopped=True)) == 0


def test_a_private_datum_that_the_prompt_gave_is_not_the_models_own() -> None:
    sample = {"prompt": "Write to ann@example.org", "tuned": "ann@example.org or bob@example.org"}
    assert new_private_data(sample) == [("bob@example.org", "email")]


def test_the_data_probe_counts_all_words_of_all_rows_and_no_reply_without_private_data(
    shards: Path, tokenizer: Any
) -> None:
    manifest = read_manifest(shards)
    found = probe(ShardReader(shards, manifest, "train"), manifest, tokenizer, [{"prompt": "", "tuned": "a run"}], 15)
    assert (found["rows"], found["of_rows"], found["private"]["left"], found["replies"]) == (14, 40, {}, [])
    assert found["words"]["trained"]["all"] > 14 * 20 and found["words"]["trained"]["words for men"] == 0


def test_without_their_libraries_the_text_metrics_are_left_out_and_exact_match_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    has_text_metrics.cache_clear()
    assert [nearness(["Yes ."], ["Yes."]), nearness(["a  b"], ["a b"])] == [{"exact_match": 0}, {"exact_match": 1}]
    assert [record.message.split(":")[0] for record in caplog.records] == ["chrF and ROUGE-L are left out"]  # once
    has_text_metrics.cache_clear()
