"""An export says which checkpoint it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cluster.errors import CheckpointError
from training.checkpoints.layout import read_commit
from training.config import ExportConfig
from training.export.export import export
from training.export.export_record import RECORD, newer_step, read_record
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
    assert {path.name for path in exported.iterdir()} == {*record.files, RECORD}
    assert record.checkpoint == read_commit(checkpoints / "step-000005").digest
    assert newer_step(record, checkpoints) is None
    weights = dict(AutoModelForCausalLM.from_pretrained(exported).named_parameters())
    write_checkpoint(checkpoints, {name: weight.detach().float() for name, weight in weights.items()}, step=9)
    assert newer_step(record, checkpoints) == 9


def test_an_export_without_a_record_is_not_taken_for_a_verified_one(exported: Path) -> None:
    (exported / RECORD).unlink()
    with pytest.raises(CheckpointError, match="missing, so which checkpoint this is"):
        read_record(exported)
