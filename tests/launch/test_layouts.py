"""`shardline check --nodes`: layouts side by side, from a YAML and a config.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from training.costs.table import WIDTH

ROOT = Path(__file__).resolve().parents[2]
SCALE = ROOT / "examples" / "scale"
MODELS = ("8b", "70b", "405b")


def check(*words: str, model: str = "8b") -> int:
    given = ["-o", f"model.path={SCALE / f'llama-3.1-{model}'}"]
    return main(["check", str(SCALE / "run.yaml"), "--tokens", "10B", *given, *words])


@pytest.mark.parametrize("model", MODELS)
def test_a_table_of_layouts_comes_from_config_json_alone(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--nodes", "1,4,64", model=model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    (start,) = (number for number, line in enumerate(lines) if line.startswith("nodes  GPUs ZeRO"))
    assert [line.split()[:2] for line in lines[start + 1 : start + 4]] == [["1", "8"], ["4", "32"], ["64", "512"]]
    assert any(line.startswith("predicted      Not measured.") for line in lines)


def test_torch_is_not_imported_for_a_llama() -> None:
    words = ["check", str(SCALE / "run.yaml"), "--nodes", "64", "--tokens", "1T"]
    words += ["-o", f"model.path={SCALE / 'llama-3.1-405b'}"]
    code = f"import sys; from launch.__main__ import main; main({words!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_run_that_does_not_fit_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--nodes", "1", model="405b") == 0
    told = capsys.readouterr().out
    assert "fits 4 nodes" in told
    assert check("--nodes", "4", model="405b") == 0
    assert "full  opt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.deepspeed", "ds_configs/zero1.json"),
        ("train.micro_batch_rows", "64"),
        ("train.activation_checkpointing", "false"),
    ],
)
def test_a_key_that_keeps_a_run_from_fitting_is_named(key: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--nodes", "4", "-o", f"{key}={value}", model="70b") == 0
    assert f"fits without {key} in the YAML" in " ".join(capsys.readouterr().out.split())


def test_a_batch_smaller_than_the_gpus_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--nodes", "64", "-o", "train.global_batch_rows=500") == 0
    assert "set train.global_batch_rows to 512 or more" in " ".join(capsys.readouterr().out.split())


def test_what_the_yaml_fixes_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["-o", "train.micro_batch_rows=2", "-o", "train.activation_checkpointing=true"]
    assert check("--nodes", "2", *fixed) == 0
    out = capsys.readouterr().out
    assert "micro_batch_rows: 2, activation_checkpointing: full" in out
    row = next(line for line in out.splitlines() if line.split()[:2] == ["2", "16"])
    assert row.split()[3:5] == ["2", "full"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "v100:8"], "'v100' is not a known kind of GPU"),
        (["--gpus", "h200:0"], "is not a number of GPUs per node"),
        (["--network", "fast"], "'fast' is not a rate"),
    ],
)
def test_a_cluster_that_is_not_understood_is_told(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("--nodes", "1", *words) == 2
    assert said in capsys.readouterr().err


def test_what_the_model_does_not_cover_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--nodes", "1", "-o", "train.precision=fp32") == 2
    assert "predicted for bf16 alone" in capsys.readouterr().err
    config = {"model_type": "mixtral", "num_hidden_layers": 2, "architectures": ["MixtralForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert check("--nodes", "1", "--gpus", "b200:8", "-o", f"model.path={tmp_path}") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "No published run on B200 was compared. Nor was a mixture of experts" in out


def test_adapters_alone_need_states(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--nodes", "1", "-o", "train.lora.rank=16", model="70b") == 0
    out = capsys.readouterr().out
    assert "70,553,706,496 parameters, 207,093,760 in adapters" in out
    assert "checkpoint     2.49 GB" in out


def test_a_cluster_without_a_number_of_nodes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--gpus", "h100:8") == 2
    assert "--gpus: describes a cluster that is not here" in capsys.readouterr().err


def test_a_folder_without_config_json_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--nodes", "1", "-o", f"model.path={tmp_path}") == 2
    assert "has no config.json" in capsys.readouterr().err


def test_a_slower_network_is_never_predicted_faster(capsys: pytest.CaptureFixture[str]) -> None:
    speeds = []
    for network in ("8x400", "4x400", "400", "100"):
        assert check("--nodes", "8", "--network", network, model="70b") == 0
        row = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["8", "64"])
        speeds.append(int(row.split()[8].replace(",", "")))
    assert speeds == sorted(speeds, reverse=True)


def test_the_shapes_of_the_examples_have_the_published_number_of_parameters() -> None:
    from training.costs.shapes import shape_of_config

    published = {"8b": 8_030_261_248, "70b": 70_553_706_496, "405b": 405_853_388_800}
    for model, parameters in published.items():
        shape = shape_of_config(json.loads((SCALE / f"llama-3.1-{model}" / "config.json").read_text()))
        assert shape is not None
        assert shape.total == parameters
