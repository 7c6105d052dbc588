"""Every code block of README and docs runs: Python as it stands, commands on the small files of ``docs_workspace``.

Blocks are run in the order of a page, in one folder a page, because later ones use what earlier ones wrote.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import docs_workspace
import pytest
import yaml

from llava_s2.cli import build_parser, main

PAGES = [docs_workspace.ROOT / "README.md", *sorted((docs_workspace.ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
KINDS = {"python", "bash", "console", "json", "yaml", "jinja", "bibtex", "text", "dockerfile"}
# A program that answers until it is stopped, and what it prints when it does.
SERVERS = {"serve": "http://", "demo": "http://"}
# These take minutes, or a machine that is not here; their own tests run them small. Their flags are still parsed.
PARSED_ONLY = {"quickstart", "study", "bench"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    docs_workspace.build(folder)
    return folder


def blocks(page):
    return FENCE.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run(page, workspace, tmp_path, monkeypatch, capfd):
    shutil.copytree(workspace, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for kind, text in blocks(page):
        assert kind in KINDS, f"{page.name}: name the language of the block {text[:60]!r}"
        if kind == "python":
            asks = "127.0.0.1:8000" in text  # a client's code, for the server that the page starts above it
            with running(["serve"], SERVERS["serve"]) if asks else nullcontext():
                exec(compile(text, page.name, "exec"), {"__name__": page.stem})
        elif kind == "json":
            json.loads(text)
        elif kind == "yaml":
            list(yaml.safe_load_all(text))
        elif kind in ("bash", "console"):
            for words in commands(text, transcript=kind == "console"):
                run(words, only_parse=kind == "console")
        capfd.readouterr()


def commands(text, transcript):
    """The commands of a block as lists of words; of a transcript, the lines behind ``$``."""
    subprocess.run(["bash", "-n"], input="" if transcript else text, text=True, check=True)
    for line in text.replace("\\\n", " ").splitlines():
        if transcript and not line.startswith("$ "):
            continue
        for command in line.removeprefix("$ ").split("&&"):
            if words := shlex.split(command, comments=True):
                yield words


def run(words, only_parse):
    while "=" in words[0]:  # variables for one command
        words = words[1:]
    if words[0] in ("bash", "python", "python3") and not words[1].startswith("-"):
        assert Path(words[1]).is_file(), words
    if words[0] != "llava-s2":
        return
    words = words[1:]
    if "…" in " ".join(words):
        return
    if words == ["--help"] or only_parse or words[0] in PARSED_ONLY:
        if words != ["--help"]:
            build_parser().parse_known_args(words)
    elif words[0] in SERVERS:
        with running(words, SERVERS[words[0]]):
            pass
    else:
        with Path(os.devnull).open() as nothing:  # `chat` without a prompt reads the terminal
            stdin, sys.stdin = sys.stdin, nothing
            try:
                assert main(words) == 0, words
            finally:
                sys.stdin = stdin


@contextmanager
def running(words, ready):
    """A server from its ready line to the end of the block."""
    command = [sys.executable, "-m", "llava_s2.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        try:
            assert any(ready in line for line in server.stdout), words
            yield
        finally:
            server.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


def test_the_architecture_page_lists_every_file():
    written = docs_workspace.ROOT / "docs" / "write_architecture.py"
    page = runpy.run_path(str(written))["page"]
    assert page() == (docs_workspace.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), written
