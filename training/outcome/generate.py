"""Generate text with an exported model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from cluster.errors import CheckpointError
from data_prep.shards.tokenizer_files import open_tokenizer
from training.models.stop_tokens import stop_token_ids


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer, and whether the model ended it with a stop token."""

    text: str
    stopped: bool


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path) -> Any:
    """Return the model of a Hugging Face folder on the best device, in evaluation mode."""
    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder).to(best_device()).eval()


def load_export(folder: Path) -> tuple[Any, Any]:
    """Return the model and tokenizer of an exported folder; an adapter is loaded onto the base model that it names."""
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise CheckpointError(f"{folder}: no exported model here; run `shardline export RUN.yaml` first")
    try:
        return load_model(folder), open_tokenizer(folder)
    except (OSError, ValueError, SafetensorError) as error:
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder}: cannot be loaded ({told}); run `shardline export RUN.yaml` again") from None


def prompt_ids(tokenizer: Any, prompt: str, *, as_chat: bool) -> list[int]:
    """Return a prompt's ids: with `as_chat` and a chat template, as a user's message that an answer follows."""
    if as_chat and tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(text, add_special_tokens=False))
    ids: list[int] = tokenizer.encode(prompt)
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, ids: list[int], *, tokens: int, temperature: float = 0.0) -> Answer:
    """Continue `ids` by at most `tokens` tokens, or until the model ends its answer."""
    stops = stop_token_ids(tokenizer)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops or [0])[0]
    inputs = torch.tensor([ids], device=model.device)
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=tokens,
        eos_token_id=stops or None,
        pad_token_id=padding,
        **sampling,
    )
    new = output[0, len(ids) :].tolist()
    stopped = bool(new) and new[-1] in stops
    return Answer(text=tokenizer.decode(new, skip_special_tokens=True).strip(), stopped=stopped)
