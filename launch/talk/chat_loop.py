"""The loop of a chat: messages and commands, from a terminal or through a pipe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from cluster.environment import cache_folder
from cluster.errors import ConfigError, DataError, ShardlineError
from launch.talk.prompts import checked, piped_prompts
from launch.talk.session import Session
from launch.talk.terminal import DIM, read_text

log = logging.getLogger(__name__)

HISTORY_LINES = 1000
HELP = '''/retry         answer the last message again
/undo          take the last message and its answer back
/reset         begin a new conversation
/system TEXT   set the system message; without TEXT, show it
/save FILE     add the conversation to a .jsonl file that `shardline prepare` reads
/quit          end, as Ctrl-D does
Ctrl-C stops an answer. A line that ends with \\ goes on in the next; """ begins and ends a longer text.
A message that begins with / is sent if a space stands before it.'''


class QuitError(Exception):
    """The user wants to end the chat."""


def talk_at_terminal(session: Session, about: str) -> None:
    """Talk until Ctrl-D or /quit; an error is told, and the chat goes on. `about` says what answers."""
    history = cache_folder() / "chat_history"
    edit_lines(history)
    try:
        greet(session, about)
        while True:
            try:
                handle(session, read_text(session.screen.question("you")))
            except EOFError:
                session.screen.say("")
                return
            except QuitError:
                return
            except KeyboardInterrupt:
                session.screen.say("")
                session.notice("Ctrl-D or /quit ends the chat")
            except ShardlineError as error:
                session.notice(str(error))
            except OSError as error:
                session.notice(f"{error.filename}: {error.strerror}")
    finally:
        keep_history(history)


def talk_through_pipe(session: Session, stream: Iterable[str]) -> None:
    """Answer each line, without prompts and styles. Raises DataError at a message that cannot be answered."""
    for prompt in piped_prompts(stream):
        try:
            handle(session, prompt.text)
        except QuitError:
            return


def greet(session: Session, about: str) -> None:
    screen = session.screen
    screen.say(f"{session.name}: {about}", DIM)
    if not session.as_chat:
        screen.say("it has learnt no chat template, so it continues what you type; an empty line goes on", DIM)
    elif session.conversation.system:
        screen.say(f"system message: {screen.shown(session.conversation.system)}", DIM)
    screen.say("/help lists the commands, Ctrl-D ends", DIM)


def handle(session: Session, text: str) -> None:
    """Follow a command, or send a message. Raises ShardlineError, QuitError."""
    if text.startswith("/"):
        word, _, rest = text.partition(" ")
        if word not in COMMANDS:
            raise ConfigError(f"{word}: no such command; /help lists them, and a space before it sends it as a message")
        COMMANDS[word](session, rest.strip())
    elif text.strip():
        session.say(checked(text.strip() if session.as_chat else text, "the message"))
    elif not session.as_chat and session.conversation.turns:
        session.go_on()


def retry(session: Session, rest: str) -> None:
    session.retry()


def undo(session: Session, rest: str) -> None:
    said = session.conversation.undo()
    session.notice("nothing to take back" if said is None else f"taken back: {session.screen.shown(said)[:60]!r}")


def reset(session: Session, rest: str) -> None:
    session.conversation.reset()
    session.notice("a new conversation")


def system(session: Session, rest: str) -> None:
    if not session.as_chat:
        raise DataError("the model has learnt no chat template, so it knows no system message; begin your text with it")
    if rest:
        session.conversation.system = checked(rest, "/system")
    session.notice(f"system message: {session.conversation.system or 'none'}")


def save(session: Session, rest: str) -> None:
    if not rest:
        raise ConfigError("/save FILE: name a .jsonl file")
    path = Path(rest).expanduser()
    session.conversation.save(path)
    session.notice(f"saved to {path}")


def show_help(session: Session, rest: str) -> None:
    for line in HELP.split("\n"):
        session.screen.say(line, DIM)


def leave(session: Session, rest: str) -> None:
    raise QuitError


COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "/retry": retry,
    "/undo": undo,
    "/reset": reset,
    "/system": system,
    "/save": save,
    "/help": show_help,
    "/quit": leave,
    "/exit": leave,
}


def edit_lines(history: Path) -> None:
    """Let lines be edited, and earlier ones be recalled, as in a shell."""
    import readline

    readline.set_history_length(HISTORY_LINES)
    if history.is_file():
        try:
            readline.read_history_file(history)
        except OSError as error:
            log.warning("%s: cannot be read: %s", history, error)


def keep_history(history: Path) -> None:
    """Keep the lines for the next chat."""
    import readline

    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)
        history.chmod(0o600)  # what a person has typed
    except OSError as error:
        log.warning("%s: cannot be written: %s", history, error)
