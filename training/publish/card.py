"""The model card: README.md and the picture of the loss, written from what the run's folder holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment

from cluster.config_loading import dump_yaml
from cluster.versions import LIBRARIES
from training.publish.card_facts import (
    as_code,
    datasets_of,
    evaluated_text,
    evaluation_tables,
    results_of,
    smaller_text,
    sources_of,
    training_rows,
)
from training.publish.loss_picture import TITLE, picture
from training.publish.private_text import scrub, scrubbed
from training.publish.subject import Subject
from training.reporting.page.facts import model_name
from training.reporting.page.verdicts import judged
from training.reporting.plots import loss_chart
from training.reporting.report import certificate_text, versions_of

TEMPLATES = Path(__file__).parent / "templates"
CARD, PICTURE = "README.md", "loss.svg"
FULL = """from transformers import pipeline

generate = pipeline("text-generation", model={repo})
prompt = {prompt}
print(generate(prompt, max_new_tokens=128)[0]["generated_text"])"""
ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, pipeline

model = AutoPeftModelForCausalLM.from_pretrained({repo})
tokenizer = AutoTokenizer.from_pretrained({repo})
generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
prompt = {prompt}
print(generate(prompt, max_new_tokens=128)[0]["generated_text"])"""


def rendered(name: str, **values: Any) -> str:
    """Return a template of this room, filled in."""
    environment = Environment(autoescape=False, keep_trailing_newline=True)  # Markdown, YAML and Python
    environment.filters["cell"] = cell
    return environment.from_string((TEMPLATES / name).read_text(encoding="utf-8")).render(**values)


def cell(text: str) -> str:
    """Return a text that stays inside a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def card_files(subject: Subject) -> dict[str, str]:
    """Return the card and, if the run's metrics are there, the picture in it, by file name."""
    state = subject.state
    chart = None if state is None else loss_chart(state, None, [])
    text = rendered("card.md", **card_values(subject), picture_title=TITLE)
    files = {CARD: tidy(scrub(text))}
    return files if chart is None else {**files, PICTURE: scrub(picture(chart))}


def tidy(text: str) -> str:
    """Return a text without the empty lines that a template leaves behind."""
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
    return "\n".join(kept).strip() + "\n"


def card_values(subject: Subject) -> dict[str, Any]:
    """Return what the card's template is filled with."""
    run, state = subject.run, subject.state
    found = sources_of(subject)
    return {
        "card_data": card_data(subject).to_yaml(),
        "title": subject.repo.rpartition("/")[2],
        "summary": summary_of(subject),
        "repo": subject.repo,
        "is_adapter": subject.is_adapter,
        "is_gguf": subject.is_gguf,
        "is_quantized": bool((subject.record.made or {}).get("bits")),
        "snippet": snippet(subject),
        "training": training_rows(subject),
        "verdict": told_verdict(subject) if state else "",
        "sources": found,
        "no_data": "its manifest is no longer there" if run else "the run that made this model is not known here",
        "about_licences": about_licences([source.license for source in found]),
        "evaluation": evaluation_tables(subject),
        "evaluated": evaluated_text(subject.evaluation) if subject.evaluation else "",
        "certificate": certificate_text(subject.certificate),
        "versions": versions_of(state) if state else made_with(subject.folder),
        "configuration": dump_yaml(scrubbed(subject.configuration)).strip() if subject.configuration else "",
    }


def card_data(subject: Subject) -> ModelCardData:
    """Return the metadata at the top of the card, which the Hub reads."""
    results = results_of(subject)
    method = ["lora"] if (subject.configuration.get("train") or {}).get("lora") or subject.is_adapter else []
    relation: dict[str, Any] = (
        {"base_model_relation": "adapter" if subject.is_adapter else "finetune"} if subject.base_id else {}
    )
    return ModelCardData(
        base_model=subject.base_id,
        datasets=datasets_of(subject.run),
        eval_results=results,
        library_name=library_of(subject),
        license=subject.license,
        model_name=subject.repo.rpartition("/")[2] if results else None,
        pipeline_tag="text-generation",
        tags=["shardline", *method],
        **relation,
    )


def library_of(subject: Subject) -> str:
    """Return what loads the repository, by the Hub's name of it."""
    return "gguf" if subject.is_gguf else "peft" if subject.is_adapter else "transformers"


def summary_of(subject: Subject) -> str:
    """Return the card's first sentences: what this is, and what it came from."""
    kind = "A conversational model" if subject.is_chat else "A language model"
    if subject.is_adapter:
        kind = "A LoRA adapter"
    if subject.base_id:
        made = f"fine-tuned from [{subject.base_id}](https://huggingface.co/{subject.base_id})"
    elif subject.run is None:
        made = "whose base model is not known to this card"
    elif subject.run.base:
        base = Path(subject.run.base)
        name = base.parent.name if base.name == "export" else base.name  # an export is called after its run
        made = f"fine-tuned from {as_code(name)}, a model that is not named on the Hub"
    else:
        made = f"trained from scratch ({scrub(model_name(subject.run.paths, None))})"
    license_text = f"Its licence is {subject.license}." if subject.license else "Its owner has not stated a licence."
    return " ".join(
        filter(
            None,
            [
                f"{kind} {made}, with Shardline: the checkpoint of step {subject.record.step:,}.",
                smaller_text(subject.record.made),
                license_text,
            ],
        )
    )


def snippet(subject: Subject) -> str:
    """Return code that answers a prompt with the published model."""
    if subject.is_gguf:
        return f"llama-cli -hf {subject.repo}"
    prompt = '[{"role": "user", "content": "Hello!"}]' if subject.is_chat else '"Once upon a time"'
    form: Callable[..., str] = (ADAPTER if subject.is_adapter else FULL).format
    return form(repo=json.dumps(subject.repo), prompt=prompt)


def told_verdict(subject: Subject) -> str:
    """Return what the losses say of the training, without the advice to whoever trains."""
    found = judged(subject.state) if subject.state else None
    return f"{found.title}. {found.text.partition(';')[0].rstrip('.')}." if found else ""


def about_licences(licences: list[str]) -> str:
    unknown = licences.count("unknown")
    if not unknown:
        return "The licences are those that the model's owner gives."
    which = "these sources" if unknown == len(licences) else "some of these sources"
    return f"The licence of {which} is unknown: check it before you use or redistribute the model."


def made_with(folder: Path) -> list[str]:
    """Return what the export's own configuration says of versions, if nothing else does."""
    config = folder / "config.json"
    version = json.loads(config.read_text(encoding="utf-8")).get("transformers_version") if config.is_file() else None
    return [f"{LIBRARIES[-1]} {version}"] if version else []
