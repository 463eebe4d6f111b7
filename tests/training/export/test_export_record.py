"""An export says which checkpoint it holds, and a file that changed since it was verified is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cluster.errors import CheckpointError
from training.checkpoints.layout import read_commit
from training.config import ExportConfig
from training.export.export import export
from training.export.export_record import RECORD, check_unchanged, newer_step, read_record
from training.models.source import ModelOrigin


@pytest.fixture
def exported(tmp_path: Path, tiny_model: Path, write_checkpoint: Callable[..., Path]) -> Path:
    config, tokenizer = AutoConfig.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    weights = dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    write_checkpoint(tmp_path / "checkpoints", {name: weight.detach() for name, weight in weights.items()})
    origin = ModelOrigin(config=config, tokenizer=tokenizer, folder=tiny_model)
    export(origin, tmp_path / "checkpoints", ExportConfig(), tmp_path / "export")
    return tmp_path / "export"


def test_a_fresh_export_names_its_checkpoint_and_a_later_checkpoint_makes_it_old(
    exported: Path, write_checkpoint: Callable[..., Path]
) -> None:
    checkpoints = exported.parent / "checkpoints"
    record = read_record(exported)
    check_unchanged(exported, record)
    assert record.checkpoint == read_commit(checkpoints / "step-000005").digest
    assert newer_step(record, checkpoints) is None
    weights = dict(AutoModelForCausalLM.from_pretrained(exported).named_parameters())
    write_checkpoint(checkpoints, {name: weight.detach().float() for name, weight in weights.items()}, step=9)
    assert newer_step(record, checkpoints) == 9


def test_a_file_that_changed_was_added_or_is_gone_since_the_verification_is_named(exported: Path) -> None:
    record = read_record(exported)
    (exported / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config.json: was not written by the export"):
        check_unchanged(exported, record)
    (exported / "adapter_config.json").unlink()
    weights = exported / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model.safetensors: changed"):
        check_unchanged(exported, record)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: missing"):
        check_unchanged(exported, record)


def test_an_export_without_a_record_is_not_taken_for_a_verified_one(exported: Path) -> None:
    (exported / RECORD).unlink()
    with pytest.raises(CheckpointError, match="missing, so which checkpoint this is"):
        read_record(exported)
