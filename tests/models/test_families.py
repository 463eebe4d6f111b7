"""What the hub holds goes in bit for bit, and what goes out acts the same in transformers 5 and 4, for every family."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.models.families import FAMILIES, config_of, logits_of
from training.config import ExportConfig
from training.export.export import Partial, export
from training.models.initial_weights import PretrainedWeights
from training.models.name_conversions import saved_tensors
from training.models.new_weights import NewWeights
from training.models.source import ModelOrigin, skeleton_of

FamilyFolder = Callable[[str], Path]


def origin_of(folder: Path) -> ModelOrigin:
    return ModelOrigin(
        config=AutoConfig.from_pretrained(folder), tokenizer=AutoTokenizer.from_pretrained(folder), folder=folder
    )


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors that from_pretrained loads."""
    return {
        name: tensor.detach()
        for name, tensor in saved_tensors(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).items()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_of_all_ranks_are_what_transformers_loads(name: str, family_folder: FamilyFolder) -> None:
    folder = family_folder(name)
    skeleton = origin_of(folder).skeleton
    expected = loaded(folder)
    assert expected.keys() == saved_tensors(skeleton).keys()
    for world_size in (1, 2, 3):
        weights = PretrainedWeights(folder, skeleton)
        for key, tensor in expected.items():
            part = -(-tensor.numel() // world_size)
            cuts = [min(rank * part, tensor.numel()) for rank in range(world_size + 1)]
            parts = [weights.part(key, tuple(tensor.shape), *cuts[rank : rank + 2]) for rank in range(world_size)]
            assert torch.equal(torch.cat(parts).reshape(tensor.shape), tensor), key
        weights.finish(elsewhere=())


@pytest.fixture(scope="module")
def export_from(
    write_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Path]:
    """Export a folder's own weights, as a run would after no step; return the export."""

    def exported(source: Path) -> Path:
        work = tmp_path_factory.mktemp("export")
        origin = origin_of(source)
        parameters = dict(origin.skeleton.named_parameters())
        trained = {key: tensor for key, tensor in loaded(source).items() if key in parameters}
        write_checkpoint(work / "checkpoints", trained, **{"frozen weights": origin.source_digest(0)})
        partial = Partial(origin=origin, seed=0, lora=None)
        export(origin, work / "checkpoints", ExportConfig(dtype="fp32"), work / "export", partial)
        return work / "export"

    return exported


@pytest.fixture(scope="module")
def export_of(family_folder: FamilyFolder, export_from: Callable[[Path], Path]) -> FamilyFolder:
    """Return the export of a family, made once."""
    return cache(lambda name: export_from(family_folder(name)))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_acts_in_transformers_5_as_its_source_does(
    name: str, family_folder: FamilyFolder, export_of: FamilyFolder
) -> None:
    source, exported = logits_of(family_folder(name)), logits_of(export_of(name))
    assert source.isfinite().all() and float(source.std()) > 1e-3
    assert torch.equal(exported, source)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_has_the_names_that_transformers_itself_saves(
    name: str, family_folder: FamilyFolder, export_of: FamilyFolder, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(family_folder(name), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    shapes = {key: tensor.shape for key, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert {key: tensor.shape for key, tensor in load_file(export_of(name) / "model.safetensors").items()} == shapes


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_model_begins_as_transformers_would_begin_it(name: str) -> None:
    skeleton = skeleton_of(config_of(name))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = saved_tensors(AutoModelForCausalLM.from_config(config_of(name), dtype=torch.float32))
    weights = NewWeights(skeleton, seed=0)
    for key, tensor in expected.items():
        made = weights.part(key, tuple(tensor.shape), 0, tensor.numel()).reshape(tensor.shape)
        assert made.isfinite().all(), key
        if float(tensor.std()) < 1e-9:  # no chance in it
            assert torch.equal(made, tensor), key
        elif tensor.numel() > 500:
            assert float(made.std()) == pytest.approx(float(tensor.std()), rel=0.2), key


IN_4 = [name for name, family in FAMILIES.items() if 4 not in family.without]


@pytest.fixture(scope="module")
def logits_in_4(
    transformers_4: Callable[..., dict[str, str]], export_of: FamilyFolder
) -> Callable[[str], torch.Tensor]:
    """Return the logits that transformers 4 makes of a family's export; one process for all."""
    folders = {name: export_of(name) for name in IN_4}
    failures = transformers_4("logits", [str(folder) for folder in folders.values()])

    def logits(name: str) -> torch.Tensor:
        assert str(folders[name]) not in failures, failures[str(folders[name])]
        found: torch.Tensor = load_file(folders[name] / "logits.safetensors")["logits"]
        return found

    return logits


@pytest.mark.slow
@pytest.mark.timeout(900)  # for a slow registry, and all families under transformers 4
@pytest.mark.parametrize("name", IN_4)
def test_an_export_acts_in_transformers_4_as_its_source_does_in_5(
    name: str, family_folder: FamilyFolder, logits_in_4: Callable[[str], torch.Tensor]
) -> None:
    assert torch.allclose(logits_in_4(name), logits_of(family_folder(name)), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def written_by_4(
    transformers_4: Callable[..., dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a family's folder as transformers 4 writes it, the words of its configuration in particular."""
    root = tmp_path_factory.mktemp("written_by_4")
    failures = transformers_4("make", [str(root), *IN_4])

    def folder(name: str) -> Path:
        assert name not in failures, failures[name]
        return root / name

    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)  # for a slow registry, and all families under transformers 4
@pytest.mark.parametrize("name", IN_4)
def test_a_family_that_transformers_4_wrote_is_read_and_exported_the_same(
    name: str, written_by_4: Callable[[str], Path], export_from: Callable[[Path], Path]
) -> None:
    folder = written_by_4(name)
    skeleton, expected = origin_of(folder).skeleton, loaded(folder)
    weights = PretrainedWeights(folder, skeleton)
    for key, tensor in expected.items():
        found = weights.part(key, tuple(tensor.shape), 0, tensor.numel())
        assert torch.equal(found.reshape(tensor.shape), tensor), key
    weights.finish(elsewhere=())
    assert torch.equal(logits_of(export_from(folder)), logits_of(folder))
