"""`shardline generate`: answer prompts with the exported model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.disk.atomic_files import digest_of
from cluster.errors import EXIT_DONE, ConfigError
from cluster.wording import count_of
from launch.arguments import positive
from launch.models.named_model import NamedModel, add_model, named_model, open_base, open_named, speaks_as_chat
from launch.talk.answer_file import AnswerFile
from launch.talk.generator import BASE, TUNED, Answers, Generator, record
from launch.talk.prompts import Prompt, checked, piped_prompts, read_prompts, typed_prompts
from launch.talk.sampling_flags import add_sampling, sampling_of
from launch.talk.terminal import BOLD, DIM, Screen, read_text
from launch.wording import as_typed, say

if TYPE_CHECKING:
    from training.generate.sampling import Sampling

CUT = " [...]"  # after an answer that the model did not end


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_model(command)
    add = command.add_argument
    add("--prompt", action="append", default=[], metavar="TEXT", help="repeatable; default: read from standard input")
    add("--input", type=Path, metavar="FILE", help="prompts from a .txt (one a line) or .jsonl file")
    add("--output", type=Path, metavar="FILE", help="write prompts and answers to a .jsonl file")
    add("--system", metavar="TEXT", help="system message before each prompt")
    add("--compare", action="store_true", help="answer with the base model too")
    add("--batch", type=positive, default=8, metavar="N", help="prompts answered at once (default: %(default)s)")
    add_sampling(command, tokens=96)


def run(options: argparse.Namespace) -> int:
    """Answer the prompts of the command line and of a file, or each line of standard input."""
    prompts, sampling = given_prompts(options), sampling_of(options)
    named, screen = named_model(options), Screen()
    generator = open_generator(options, named, sampling)
    if options.output is not None:
        write_answers(generator, named, prompts, options)
    elif not prompts:
        is_typed = sys.stdin.isatty()
        for prompt in asked_prompts(screen) if is_typed else piped_prompts(sys.stdin):
            stream_answers(generator, prompt, screen, echo=not is_typed)
    elif screen.is_terminal and len(prompts) <= options.batch:
        for prompt in prompts:
            stream_answers(generator, prompt, screen)
    else:
        for prompt, answers in in_order(prompts, generator.answers(prompts, options.batch)):
            say(as_text(prompt, answers))
    if screen.is_terminal:
        screen.say(f"next: shardline chat {as_typed(options)}", DIM)
    return EXIT_DONE


def given_prompts(options: argparse.Namespace) -> list[Prompt]:
    """Return the prompts of the command line and the file. Raises ConfigError, DataError."""
    if options.system is not None:
        checked(options.system, "--system")
    prompts = typed_prompts(options.prompt) + (read_prompts(options.input) if options.input else [])
    if options.output is None:
        return prompts
    if options.output.suffix != ".jsonl":
        raise ConfigError(f"--output {options.output}: answers are JSON lines; give a name that ends in .jsonl")
    if options.input is not None and options.output.resolve() == options.input.resolve():
        raise ConfigError("--output: the same file as --input; give another name")
    prompts = prompts or ([] if sys.stdin.isatty() else list(piped_prompts(sys.stdin)))
    if not prompts:
        raise ConfigError("--output: there are no prompts; give --input FILE or --prompt TEXT")
    return prompts


def open_generator(options: argparse.Namespace, named: NamedModel, sampling: Sampling) -> Generator:
    """Load what the options ask for."""
    model, tokenizer = open_named(named)
    return Generator(
        models={**({BASE: open_base(named, tokenizer)} if options.compare else {}), TUNED: model},
        tokenizer=tokenizer,
        as_chat=speaks_as_chat(named, tokenizer),
        system=options.system,
        sampling=sampling,
    )


def asked_prompts(screen: Screen) -> Iterator[Prompt]:
    """Yield what a person types."""
    import readline  # noqa: F401  # gives `input` its line editing

    sys.stderr.write("Type a prompt and press Enter; Ctrl-D ends.\n")
    while True:
        try:
            text = read_text(screen.question("prompt"))
        except EOFError:
            screen.say("")
            return
        if text.strip():
            yield Prompt(where="the prompt", text=checked(text, "the prompt"))


def stream_answers(generator: Generator, prompt: Prompt, screen: Screen, *, echo: bool = True) -> None:
    """Show a prompt and its answers as they are generated; without `echo`, the answers alone."""
    if echo:
        screen.say(f"> {screen.shown(prompt.shown)}", BOLD)
    for name, stream in generator.streams(prompt):
        screen.write(screen.styled(f"{name}: ", BOLD) if len(generator.models) > 1 else "")
        try:
            screen.answer(stream)
        finally:
            stream.close()
        screen.say("" if stream.answer and stream.answer.stopped else screen.styled(CUT, DIM))
    screen.say("")


def as_text(prompt: Prompt, answers: Answers) -> str:
    """Return a prompt and its answers as `generate` prints them where it does not stream."""
    lines = [f"> {prompt.shown}"]
    for name, answer in answers.items():
        label = f"{name}: " if len(answers) > 1 else ""
        lines.append(label + answer.text + ("" if answer.stopped else CUT))
    return "\n".join(lines) + "\n"


def in_order(prompts: list[Prompt], answers: Iterable[tuple[int, Answers]]) -> Iterator[tuple[Prompt, Answers]]:
    """Yield prompts and answers in the prompts' order, each as soon as all before it are there."""
    waiting: dict[int, Answers] = {}
    place = 0
    for found, answer in answers:
        waiting[found] = answer
        while place in waiting:
            yield prompts[place], waiting.pop(place)
            place += 1


def write_answers(generator: Generator, named: NamedModel, prompts: list[Prompt], options: argparse.Namespace) -> None:
    """Answer the prompts into the output file; what an interrupted command has answered is kept."""
    asked = [generator.ids(prompt) for prompt in prompts]
    settings = [generator.sampling.model_dump(), options.batch, list(generator.models), stamp_of(named.folder)]
    with AnswerFile(options.output, digest_of([settings, asked]), len(prompts)) as file:
        if file.records:
            say(f"{len(file.records)} of {len(prompts)} answers are in {file.unfinished}; continuing")
        for place, answers in generator.answers(prompts, options.batch, list(file.records)):
            file.add(place, record(prompts[place], answers))
    ended = sum(record["stopped"] for record in file.records.values())
    say(f"{options.output}: {count_of(len(prompts), 'answer')}, {ended} of them ended by the model")


def stamp_of(folder: Path) -> list[list[str | int]]:
    """Return what tells a folder's models apart: the names, sizes and times of its files."""
    stats = [(path, path.stat()) for path in sorted(folder.resolve().iterdir()) if path.is_file()]
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
