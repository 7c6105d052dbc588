"""Chat in a terminal."""

import contextlib
import os
import shlex
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from llava_s2.data.image_decoding import open_image
from llava_s2.errors import InputError
from llava_s2.serve.chat import Chat

try:
    import readline  # input() edits and recalls lines with it
except ImportError:  # on Windows
    readline = None  # type: ignore[assignment]

_HELP = (
    "/image PATH … shows images with the next message, /clear starts anew, /quit or Ctrl-D leaves; "
    "Ctrl-C stops an answer"
)
_MOST_LINES = 1000


def interact(chat: Chat) -> None:
    """Reads messages and prints answers until the user leaves or the input ends.

    Lines typed at a terminal are kept from one session to the next, in ``$XDG_STATE_HOME/llava-s2/history``.
    """
    print(_HELP)
    with _recalled_lines():
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print(f"\n{_HELP}")
                continue
            command, _, argument = line.partition(" ")
            if command in ("/quit", "/exit"):
                return
            try:
                if command == "/clear":
                    chat.clear()
                elif command == "/image":
                    _show(chat, argument)
                elif command.startswith("/"):
                    print(_HELP)
                elif line:
                    print_answer(chat, line)
            except InputError as error:
                print(f"error: {error}")
            except KeyboardInterrupt:
                print(" (stopped)")


def print_answer(chat: Chat, text: str) -> None:
    """Asks and prints the answer as it comes, without the characters that would steer the terminal."""
    with closing(chat.ask(text)) as pieces:
        for piece in pieces:
            print("".join(letter for letter in piece if _is_harmless(letter)), end="", flush=True)
    print()


def _is_harmless(letter: str) -> bool:
    return letter in "\n\t" or unicodedata.category(letter) != "Cc"


def _show(chat: Chat, argument: str) -> None:
    """Adds the images named, or none of them; a path with spaces may stand in quotes or as it is."""
    if not argument.strip():
        raise InputError("/image needs the path of an image")
    try:
        paths = shlex.split(argument)
    except ValueError:  # an apostrophe in a name
        paths = []
    whole = Path(argument.strip()).expanduser()
    images = [open_image(whole)] if whole.exists() else [open_image(Path(path).expanduser()) for path in paths]
    if not images:
        raise InputError(f"{whole}: no such image file")
    for image in images:
        chat.add_image(image)


@contextlib.contextmanager
def _recalled_lines() -> Iterator[None]:
    """Has the arrow keys recall lines of earlier sessions too. Where that cannot be kept, the chat goes on without."""
    if readline is None or not os.isatty(0):
        yield
        return
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    file = Path(state).expanduser() / "llava-s2" / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(_MOST_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(file)
