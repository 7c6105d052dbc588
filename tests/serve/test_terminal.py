"""The interactive chat at a real terminal, in a process of its own."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from llava_s2.errors import InputError
from llava_s2.serve import terminal

# A shell's background job, and what it starts, would ignore Ctrl-C.
_TALK = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from llava_s2.formats.load import load_pretrained
from llava_s2.serve.chat import Chat, Sampling
from llava_s2.serve.terminal import interact
loaded = load_pretrained(sys.argv[1], vision_tower=sys.argv[2], dtype="float32")
interact(Chat(*loaded, Sampling(max_new_tokens=1900)))
"""


class Terminal:
    def __init__(self, folder, golden) -> None:
        self.own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TALK, str(golden / "llava-tiny-s2"), str(golden / "clip-tiny")],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "XDG_STATE_HOME": str(folder), "TERM": "dumb"},
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.own, text.encode())

    def wait_for(self, pattern: str) -> None:
        """Until what was printed since the last match holds this too."""
        end = time.monotonic() + 120
        while not (found := re.search(pattern, self.seen)):
            readable, _, _ = select.select([self.own], [], [], max(0, end - time.monotonic()))
            assert readable, self.seen
            self.seen += os.read(self.own, 4096).decode(errors="replace")
        self.seen = self.seen[found.end() :]


def test_ctrl_c_stops_the_answer_and_lines_are_kept(tmp_path):
    from demo_browser import GOLDEN

    terminal = Terminal(tmp_path, GOLDEN)
    try:
        terminal.wait_for("> ")
        terminal.type("Talk.\n")
        terminal.wait_for(r"Talk\.\s+\S+\s\S+\s")  # some words of the answer
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for(r"\(stopped\)\s+> ")
        terminal.type("\x10\n")  # Ctrl-P recalls the line
        terminal.wait_for(r"Talk\.\s+\S+\s\S+\s")
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for(r"\(stopped\)\s+> ")
        terminal.type("/quit\n")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.own)
    assert (tmp_path / "llava-s2/history").read_text().splitlines()[-1] == "/quit"


class Echo:
    """Stands for a Chat: answers with what is asked."""

    def __init__(self) -> None:
        self.images = []

    def ask(self, text):
        yield from text

    def add_image(self, image) -> None:
        self.images.append(image)


def test_an_answer_cannot_steer_the_terminal(capsys):
    terminal.print_answer(Echo(), "a\x1b]0;title\x07b\x9b2Jc\rd\n\té")
    assert capsys.readouterr().out == "a]0;titleb2Jcd\n\té\n"


def test_pictures_by_path(tmp_path, monkeypatch):
    for name in ("a.png", "with space.png", "it's.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for argument, count in (("a.png a.png", 2), ("'with space.png' a.png", 2), ("with space.png", 1), ("it's.png", 1)):
        chat = Echo()
        terminal._show(chat, argument)
        assert len(chat.images) == count
    for argument in ("", "none.png", "a.png none.png"):
        chat = Echo()
        with pytest.raises(InputError):
            terminal._show(chat, argument)
        assert chat.images == []
