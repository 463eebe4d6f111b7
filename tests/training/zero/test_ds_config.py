"""Templates are data: what they may set, and what the run's YAML owns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.config_loading import parse_yaml
from cluster.errors import ConfigError
from training.config import ExportConfig, TrainConfig
from training.costs.buckets import Buckets
from training.plan import Plan
from training.zero.ds_config import DEFAULT_TEMPLATE, OWNED, deepspeed_config, read_template, stage_of, with_sizes

TEMPLATES = sorted(DEFAULT_TEMPLATE.parent.glob("*.json"))


def written(folder: Path, template: Any) -> Path:
    path = folder / "template.json"
    path.write_text(json.dumps(template))
    return path


def plan_of(config: TrainConfig, world_size: int) -> Plan:
    return Plan(
        world_size=world_size,
        micro_batch_rows=config.micro_batch_rows,
        accumulation_steps=config.global_batch_rows // config.micro_batch_rows // world_size,
        global_batch_rows=config.global_batch_rows,
        row_tokens=64,
        rows=100,
        trained_tokens=100,
        total_steps=10,
        warmup_steps=0,
        parameters=1,
        trained_parameters=1,
        checkpoint_bytes=12,
        seed=0,
        data_digest="",
        config=config,
    )


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_template_that_comes_with_us_is_accepted(path: Path) -> None:
    template = read_template(path)
    assert path.name.startswith(f"zero{stage_of(template)}")
    assert ("offload_optimizer" in template["zero_optimization"]) == ("offload" in path.name)


def test_without_a_template_the_default_one_is_read() -> None:
    assert read_template(None) == json.loads(DEFAULT_TEMPLATE.read_text())


@pytest.mark.parametrize("key", OWNED)
def test_a_template_that_sets_what_the_yaml_owns_is_told_where_to_set_it(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, {"zero_optimization": {"stage": 3}, key: 1})
    with pytest.raises(ConfigError) as caught:
        read_template(path)
    assert f"{path}: sets '{key}'; remove it there and set {OWNED[key]} in the run's YAML" in str(caught.value)


@pytest.mark.parametrize("key", OWNED)
def test_the_place_where_a_refused_key_is_to_be_set_exists(key: str) -> None:
    named = [word.strip(",").removeprefix("train.") for word in OWNED[key].split() if word.startswith("train.")]
    fields = TrainConfig.model_fields
    assert named
    assert all(any(field.startswith(name.rstrip("*")) for field in fields) for name in named)


@pytest.mark.parametrize("template", [{"zero_optimization": {"stage": 0}}, {}])
def test_a_template_for_another_stage_is_refused(tmp_path: Path, template: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"zero_optimization\.stage is (0|None); accepted: 1, 2, 3"):
        read_template(written(tmp_path, template))


@pytest.mark.parametrize(
    ("stage", "section", "device", "accepted"),
    [
        (1, "offload_optimizer", "nvme", "none, cpu"),
        (2, "offload_param", "cpu", "none"),
        (3, "offload_param", "nvme", "none, cpu"),
        (3, "offload_optimizer", "disk", "none, cpu, nvme"),
    ],
)
def test_an_offload_that_a_stage_has_not_is_refused(
    tmp_path: Path, stage: int, section: str, device: str, accepted: str
) -> None:
    path = written(tmp_path, {"zero_optimization": {"stage": stage, section: {"device": device}}})
    with pytest.raises(ConfigError, match=rf"{section}\.device is {device}; accepted in stage {stage}: {accepted}$"):
        read_template(path)


def test_a_template_that_is_no_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "template.json").write_text('{\n "zero_optimization": {"stage": 3},\n}')
    with pytest.raises(ConfigError, match=r"train\.deepspeed: .*template\.json: not JSON: .* line 3"):
        read_template(tmp_path / "template.json")


@pytest.mark.parametrize("template", [[], 3, {"zero_optimization": 3}, {"zero_optimization": None}])
def test_a_template_of_another_shape_is_a_problem_of_the_configuration(tmp_path: Path, template: Any) -> None:
    with pytest.raises(ConfigError, match=r"train\.deepspeed"):
        read_template(written(tmp_path, template))


def test_a_template_that_is_not_there_says_where_templates_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; ds_configs/ holds the templates"):
        read_template(tmp_path / "zero4.json")


def test_the_plan_decides_the_batch_the_precision_and_the_clipping() -> None:
    config = TrainConfig(global_batch_rows=48, micro_batch_rows=3, clip_gradient_norm=0.5, precision="bf16")
    result = deepspeed_config(read_template(None), config, plan_of(config, world_size=4))
    sizes = [
        result[key] for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    ]
    assert sizes == [48, 3, 4]
    assert (result["bf16"], result["gradient_clipping"]) == ({"enabled": True}, 0.5)
    assert result["zero_optimization"] == with_sizes(read_template(None)["zero_optimization"], Buckets())


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_auto_becomes_a_number_in_every_template_that_comes_with_us(path: Path) -> None:
    sizes = Buckets(reduce=1, prefetch=2, persistence=3)
    zero = with_sizes(read_template(path)["zero_optimization"], sizes)
    assert "auto" not in zero.values() and zero["reduce_bucket_size"] == 1
    assert zero.get("stage3_prefetch_bucket_size", 2) == 2


def test_a_number_in_a_template_is_kept() -> None:
    assert with_sizes({"stage": 2, "reduce_bucket_size": 5}, Buckets()) == {"stage": 2, "reduce_bucket_size": 5}


def test_no_clipping_is_no_clipping() -> None:
    config = TrainConfig(clip_gradient_norm=None, precision="fp32")
    result = deepspeed_config(read_template(None), config, plan_of(config, world_size=1))
    assert (result["bf16"], result["gradient_clipping"]) == ({"enabled": False}, 0.0)


def test_the_page_about_templates_names_each_of_them_and_shows_settings_that_are_accepted() -> None:
    page = (DEFAULT_TEMPLATE.parent.parent / "docs" / "templates.md").read_text()
    assert re.findall(r"^\| `(\w+\.json)`", page, flags=re.MULTILINE) == [path.name for path in TEMPLATES]
    examples = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    sections = [section for text in examples for section in parse_yaml(text, "docs/templates.md").items()]
    assert [name for name, _ in sections] == ["train", "train", "export"]
    for name, values in sections:
        (TrainConfig if name == "train" else ExportConfig).model_validate(values)
