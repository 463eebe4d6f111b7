"""What each family can do, found out by doing it: docs/models.md holds the table that comes out.

Loaded by two ZeRO-3 ranks, checked, trained, saved, resumed by one rank, exported, and opened by transformers 5 and 4.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_prep.config import DataConfig
from data_prep.prepare import prepare
from data_prep.shards import read_manifest
from tests.models.families import FAMILIES, logits_of, make_family
from tests.models.matrix_ranks import KINDS, STEPS, request_of
from tests.rank_server import RankServer
from training.config import ExportConfig
from training.export.export import Partial, export
from training.models.source import find_model

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
RANKS = Path(__file__).with_name("matrix_ranks.py")
HEAD = "| family | documents of a row | full fine-tuning | LoRA | export in transformers 5 | in 4.57 |"
Found = dict[str, dict[str, Any]]


def write_shards(root: Path, model: Path) -> None:
    """Prepare pairs of uneven lengths, several to a row."""
    rows = [{"prompt": f"q{n} " + "ab" * (n % 5), "completion": "cd " * (1 + n % 4)} for n in range(60)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "sources": [{"path": str(root / "pairs.jsonl")}],
        "row_tokens": 64,
        "validation_fraction": 0.2,
        "executor": "local",
        "workers": 1,
        "cleaning": {"near_duplicates": "off"},
    }
    prepare(DataConfig.model_validate(config), root / "shards", str(model), 0)


def run(server: RankServer, root: Path, ranks: int, jobs: Sequence[str]) -> Found:
    assert server.run([str(RANKS), str(root), *jobs], ranks) == 0
    found: Found = json.loads((root / f"found-{ranks}.json").read_text())
    return found


def exported(root: Path, name: str, kind: str) -> Path:
    request = request_of(root, name, kind)
    origin = find_model(request.model, request.shards, read_manifest(request.shards))
    partial = Partial(origin=origin, seed=0, lora=request.train.lora)
    export(origin, request.paths.checkpoints, ExportConfig(dtype="fp32"), request.paths.export, partial)
    return Path(request.paths.export)


def matrix(
    root: Path, names: Sequence[str], server: RankServer, transformers_4: Callable[..., dict[str, str]]
) -> Found:
    """Do everything; return what was found, by family and kind of training.

    Two ranks begin a full fine-tuning and one ends it; two ranks train low-rank additions to the end.
    """
    for name in names:
        make_family(name, root / name)
    write_shards(root, root / names[0])
    steps = {"full": STEPS - 1, "lora": STEPS}
    begun = run(server, root, 2, [f"{name}:{kind}:{steps[kind]}" for name in names for kind in KINDS])
    resumed = run(server, root, 1, [f"{name}:full:{STEPS}" for name in names])
    found = begun | resumed
    exports = {}
    for key, facts in found.items():
        name, kind = key.split()
        assert begun[key].keys() == facts.keys(), key
        if "refused" not in facts:
            assert begun[key]["isolation"] == facts["isolation"], key
            exports[key] = exported(root, name, kind)
            facts["5"] = difference(root, key, logits_of(exports[key]))
    opened = {key: folder for key, folder in exports.items() if 4 not in FAMILIES[key.split()[0]].without}
    failures = transformers_4("logits", [str(folder) for folder in opened.values()])
    assert not failures
    for key, folder in opened.items():
        found[key]["4"] = difference(root, key, load_file(folder / "logits.safetensors")["logits"])
    return found


def difference(root: Path, key: str, logits: torch.Tensor) -> float:
    """Return how far the logits of an export are from those of the engine that trained it."""
    name, kind = key.split()
    trained = load_file(root / "runs" / name / kind / "logits.safetensors")["logits"]
    return float((logits - trained).abs().max() / trained.abs().max())


def check(found: Found) -> None:
    """No cell is wrong in silence: what was trained leaves as it was, what was not was refused in words."""
    for key, facts in found.items():
        if "refused" in facts:
            assert facts["refused"], key
            continue
        assert facts["gradient_norm"] > 0, key
        assert facts["own_loss"], f"{key}: the loss is not taken in the head"
        for version in {"4", "5"} & facts.keys():
            assert facts[version] < 1e-4, f"{key}: transformers {version} differs by {facts[version]:.1e}"


def row(found: Found, name: str) -> str:
    """Return a family's line of the table."""
    full = found[f"{name} full"]
    trained = ["yes" if "refused" not in found[f"{name} {kind}"] else "refused" for kind in KINDS]
    in_4 = "yes" if "4" in full else FAMILIES[name].without.get(4, "no")
    cells = [f"`{name}`", full.get("isolation", ""), *trained, "yes" if "5" in full else "no", in_4]
    return f"| {' | '.join(cells)} |"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_family_is_trained_resumed_and_exported_as_the_page_says(
    tmp_path: Path, rank_server: RankServer, transformers_4: Callable[..., dict[str, str]]
) -> None:
    found = matrix(tmp_path, list(FAMILIES), rank_server, transformers_4)
    check(found)
    table = "\n".join([HEAD, "|---|---|---|---|---|---|", *(row(found, name) for name in FAMILIES)])
    page = PAGE.read_text(encoding="utf-8")
    if os.environ.get("WRITE_DOCS"):
        before, _, after = page.partition(HEAD)
        page = before + table + "\n\n" + after.partition("\n\n")[2]
        PAGE.write_text(page, encoding="utf-8")
    assert table in page, "docs/models.md says otherwise; WRITE_DOCS=1 writes what was found"
