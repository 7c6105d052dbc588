import pytest
from api_server import GOLDEN, Command

from llava_s2.formats.load import load_pretrained


@pytest.fixture(scope="session")
def loaded():
    return load_pretrained(str(GOLDEN / "llava-tiny-s2"), vision_tower=str(GOLDEN / "clip-tiny"), dtype="float32")


@pytest.fixture
def tower_runs(loaded):
    """One entry for each time that the vision tower ran."""
    runs = []
    hook = loaded[0].model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    yield runs
    hook.remove()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    command = Command(tmp_path_factory.mktemp("server"))
    yield command
    command.stop()
