"""The robot study, in the simulator and on demonstrations in robomimic's layout."""

import h5py
import numpy as np
from PIL import Image
from test_trained_studies import rows, study

SMALL = ["--scales", "32", "--scales", "32,64", "--epochs", 2, "--batch-size", 8]


def test_the_scripted_expert_is_imitated_and_an_episode_is_filmed(towers, tmp_path):
    command = ("robot", towers[0], *SMALL, "--demonstrations", 2, "--positions", 1, "--full-resolution")
    assert study(*command, "--output", tmp_path) == 0
    single, both = rows(tmp_path)
    assert single["picked up"] in ("0 of 1", "1 of 1") and single["scales"] == "32²"
    assert both["train loss"] > 0
    with Image.open(tmp_path / both["video"]) as film:
        assert film.n_frames > 1 and film.size == (64, 64)
    with h5py.File(next((tmp_path / "features").glob("demonstrations-2-*.hdf5"))) as file:
        assert len(file["data"]) == 2


def test_the_expert_picks_the_cube_up():
    from llava_s2.studies.simulator import Simulator

    with Simulator(32) as simulator:
        for position in range(3):
            simulator.reset(position)
            assert any(simulator.step(simulator.expert())[1] for _ in range(60))


def robomimic(path, demonstrations, rng):
    """Whose next action can be seen: the image is as bright as the action is large."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number in range(demonstrations):
            actions = rng.uniform(-1, 1, (12, 4)).astype(np.float32)
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = len(actions)
            group["actions"] = actions
            bright = np.uint8(127 + 120 * actions[:, 0])
            group["obs/agentview_image"] = np.broadcast_to(bright[:, None, None, None], (12, 40, 40, 3)).copy()
            group["obs/robot0_eef_pos"] = rng.normal(size=(12, 3))


def test_demonstrations_of_ones_own(towers, tmp_path, capsys):
    robomimic(tmp_path / "demos.hdf5", 12, np.random.default_rng(0))
    command = ("robot", towers[0], "--scales", "32", "--batch-size", 8, "--demos", tmp_path / "demos.hdf5")
    assert study(*command, "--epochs", 1, "--output", tmp_path / "short") == 0
    assert study(*command, "--epochs", 15, "--output", tmp_path / "long") == 0
    short, long = (rows(tmp_path / name)[0] for name in ("short", "long"))
    assert long["train loss"] < 0.8 * short["train loss"]
    assert short["held-out action error"] > 0
    (tmp_path / "broken.hdf5").write_bytes(b"no HDF5")
    capsys.readouterr()
    assert study(*command[:-1], tmp_path / "broken.hdf5", "--output", tmp_path / "none") == 2
    assert "broken.hdf5" in capsys.readouterr().err
