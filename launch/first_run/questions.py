"""Ask on a terminal what the arguments leave open; an answer that cannot be used is told, and asked again."""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.errors import ShardlineError
from cluster.model_files import CONFIG
from cluster.terminal import size_of
from data_prep.files.formats import format_of
from data_prep.rows.field_proposals import quoted_path
from data_prep.rows.fields import PLACEHOLDER
from launch.first_run.named_settings import HEADLESS, ROLES, sections_of, ways_of
from launch.first_run.summary import wrapped
from launch.wording import say

BACK = "back"
MOST_SHOWN = 8  # names of what lies here
OPEN_LINE = re.compile(r"^\s*(?P<key>.+?):\s+\?\?\?(?:\s*#\s*(?P<comment>.*))?$")

Check = Callable[[str], str | None]
"""Returns why an answer cannot be used, or None."""


def is_asking(*, says_yes: bool) -> bool:
    """Return whether there is somebody to ask."""
    return not says_yes and sys.stdin.isatty() and sys.stdout.isatty()


def tell(text: str, indent: int = 0) -> None:
    """Write a line, broken between words where the terminal ends."""
    say(wrapped(text, size_of(sys.stdout)[0], indent))


def ask(question: str, default: str, shown: str | None = None, check: Check | None = None) -> str:
    """Return the answer to a question, or the default for an empty one; asks again while the check refuses it.

    At the end of the input (Ctrl-D) nobody is left to ask: raises KeyboardInterrupt, as Ctrl-C does.
    """
    said = shown or default
    while True:
        try:
            answer = input(f"{question} [{said}]: " if said else f"{question}: ").strip() or default
        except EOFError:
            tell("")
            raise KeyboardInterrupt from None
        problem = check(answer) if check is not None else None
        if problem is None:
            return answer
        tell(f"  {problem}", 2)


def ask_yes(question: str, *, default: bool) -> bool:
    """Return the answer to a question of yes or no."""
    shown = "Y/n" if default else "y/N"
    answer = ask(question, "y" if default else "n", shown, one_of("y", "yes", "n", "no", said="answer y or n"))
    return answer.lower().startswith("y")


def one_of(*allowed: str, said: str | None = None) -> Check:
    """Return a check that lets only these answers pass."""
    wanted = said or f"answer one of: {', '.join(allowed)}"
    return lambda answer: None if answer.lower() in {one.lower() for one in allowed} else wanted


def ask_data(default: str, why_not: Check) -> str:
    """Return the name of some data that can be read."""
    names = [path.name for path in sorted(Path().iterdir()) if may_be_data(path)]
    show_names("your data may be", names)
    only = names[0] if len(names) == 1 else ""
    first = default if default in names else only

    def refused(answer: str) -> str | None:
        problem = why_not(answer) if answer else "name your data"
        return problem and (f"{answer}: {problem}" if answer else problem)

    return ask("Your data: a file, a folder or a glob", first, check=refused)


def may_be_data(path: Path) -> bool:
    if path.name.startswith(".") or is_model(path):
        return False
    if path.is_dir():
        return path.name != "runs" and any(path.iterdir())
    return path.suffix not in (".yaml", ".yml", ".py", ".log") and format_of(path.name) is not None


def is_model(path: Path) -> bool:
    return (path / CONFIG).is_file()


def ask_model(look: Callable[[str], object]) -> str | None:
    """Return the name of a model that can be fine-tuned; None for a new one."""
    show_names("models here are", [path.name for path in sorted(Path().iterdir()) if is_model(path)])

    def refused(answer: str) -> str | None:
        try:
            if answer:
                look(answer)
        except ShardlineError as error:
            return str(error).removeprefix("--model ").removeprefix("--model: ")
        return None

    question = "Model to fine-tune: a folder or a Hub id"
    return ask(question, "", "none: a new small model", refused) or None


def show_names(what: str, names: Sequence[str]) -> None:
    if names:
        more = ", ..." if len(names) > MOST_SHOWN else ""
        tell(f"  {what} {', '.join(names[:MOST_SHOWN])}{more}", 2)


def ask_open_lines(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the lines of YAML below a source with an answer in place of each placeholder."""
    if ways := ways_of(lines):
        others = (section for name, section in sections_of(lines).items() if name not in ("", "fields"))
        return ask_lines([ask_way(ways), *(line for section in others for line in section)])
    for line in lines:
        if line.startswith("#"):
            tell(f"  {line.lstrip('# ')}")
    headless = next((found["columns"] for line in lines if (found := HEADLESS.search(line))), None)
    if headless and ask_yes("Is the first line a row, and no header with names?", default=True):
        lines = [*lines[: [*lines, "fields:"].index("fields:")], headless]
    return ask_lines(lines)


def ask_lines(lines: Sequence[str]) -> tuple[str, ...]:
    """Return lines with an answer in place of each placeholder; `back` asks the question before again."""
    answered: list[str] = []
    asked: list[int] = []
    while len(answered) < len(lines):
        line = lines[len(answered)]
        if OPEN_LINE.match(line) is None:
            answered.append(line)
            continue
        answer = ask_line(line, answered, may_go_back=bool(asked))
        if answer is None:
            del answered[asked.pop() :]
        else:
            asked.append(len(answered))
            answered.append(answer)
    return tuple(answered)


def ask_way(ways: Sequence[str]) -> str:
    """Return the chosen one of several ways to read the columns."""
    tell("The columns can be read in several ways:")
    for number, way in enumerate(ways, 1):
        tell(f"  {number}  {way}")
    numbers = [str(number) for number in range(1, len(ways) + 1)]
    return ways[int(ask("Which is right?", "", check=one_of(*numbers))) - 1]


def ask_line(line: str, before: Sequence[str], *, may_go_back: bool) -> str | None:
    """Return an open line of YAML with an answer in place of its placeholder; None for the answer `back`.

    A column of the lines `before` is not taken again.
    """
    found = OPEN_LINE.match(line)
    assert found is not None
    key, comment = found["key"].strip().strip('"'), found["comment"] or ""
    choices = comment.partition("one of: ")[2].partition(";")[0].split(", ") if "one of: " in comment else []
    if set(ROLES) <= set(re.findall(r"\w+", comment)):
        choices, before = list(ROLES), ()
    is_whole = choices and not choices[-1].endswith("...")
    taken = {line.partition(": ")[2] for line in before}
    if is_whole and (free := [choice for choice in choices if quoted_path(choice) not in taken]):
        choices, comment = free, f"one of: {', '.join(free)}"
    may_go_back = may_go_back and BACK not in choices
    hints = [comment, f"{BACK}: the question before" if may_go_back else ""]
    hint = f" ({'; '.join(filter(None, hints))})" if any(hints) else ""
    check = one_of(*choices, *([BACK] if may_go_back else [])) if is_whole else one_that_is_something
    answer = ask(f"{QUESTIONS.get(key, f'What is {key}?')}{hint}", "", check=check)
    if may_go_back and answer.lower() == BACK:
        return None
    exact = next((choice for choice in choices if choice.lower() == answer.lower()), answer)
    return f"{line[: line.index(PLACEHOLDER)]}{quoted_path(exact)}"


QUESTIONS = {
    "prompt": "Which column holds the question?",
    "completion": "Which column holds the answer?",
    "text": "Which column holds the text?",
    "messages": "Which column holds the conversation?",
    "role": "Which key says who speaks?",
    "content": "Which key holds what is said?",
    "group_by": "Which column tells conversations apart?",
    "encoding": "Which encoding has the file?",
}


def one_that_is_something(answer: str) -> str | None:
    return None if answer else "there is no usual answer: type one, or Ctrl-C to stop"


def complete_paths() -> None:
    """Let Tab complete the names of files."""
    import readline

    def nth(text: str, number: int) -> str | None:
        head, slash, last = text.rpartition("/")
        near = sorted(Path(head + slash or ".").expanduser().glob(f"{glob.escape(last)}*"))
        if number >= len(near):
            return None
        return f"{head}{slash}{near[number].name}{'/' if near[number].is_dir() else ''}"

    readline.set_completer(nth)
    readline.set_completer_delims("")
    readline.parse_and_bind("tab: complete")
