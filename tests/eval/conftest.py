"""The tiny reference model, loaded once, for whole runs through the command line."""

from importlib import import_module

import pytest
from tiny_model import GOLDEN

from llava_s2.eval.eval_cli import TASKS
from llava_s2.formats.load import load_pretrained
from llava_s2.formats.model_source import ModelSource


@pytest.fixture(scope="session")
def loaded():
    return load_pretrained(str(GOLDEN / "llava-tiny-s2"), vision_tower=str(GOLDEN / "clip-tiny"), dtype="float32")


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """The tiny model never ends an answer by itself; LLaVA's bounds would have it babble for a long time."""
    for module, name in TASKS.values():
        monkeypatch.setattr(getattr(import_module(module), name), "max_new_tokens", 8)


@pytest.fixture
def loads(monkeypatch, loaded):
    """Has every run use the model that is loaded already; counts how often it is asked for."""
    calls = []
    monkeypatch.setattr(ModelSource, "load", lambda self: calls.append(self) or loaded)
    return calls
