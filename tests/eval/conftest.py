"""The tiny reference model, loaded once, for whole runs through the command line."""

import pytest
from tiny_model import GOLDEN

from llava_s2.model.arguments import ModelSource
from llava_s2.model.loading import load_pretrained


@pytest.fixture(scope="session")
def loaded():
    return load_pretrained(str(GOLDEN / "llava-tiny-s2"), vision_tower=str(GOLDEN / "clip-tiny"), dtype="float32")


@pytest.fixture
def loads(monkeypatch, loaded):
    """Has every run use the model that is loaded already; counts how often it is asked for."""
    calls = []
    monkeypatch.setattr(ModelSource, "load", lambda self: calls.append(self) or loaded)
    return calls
