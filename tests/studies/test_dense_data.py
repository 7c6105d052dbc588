"""ADE20k and NYUv2 in miniature, in their official layouts; and broken ones, told by name."""

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from llava_s2.errors import InputError
from llava_s2.studies.dense_data import load_depths, load_masks

RNG = np.random.default_rng(0)


@pytest.fixture
def ade(tmp_path):
    for split in ("training", "validation"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "annotations" / split).mkdir(parents=True)
        for number in range(2):
            name = f"ADE_{split}_{number:08d}"
            Image.fromarray(RNG.integers(0, 255, (12, 20, 3), dtype=np.uint8)).save(
                tmp_path / "images" / split / f"{name}.jpg"
            )
            mask = np.arange(240).reshape(12, 20) % 4
            Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "annotations" / split / f"{name}.png")
    return tmp_path


def test_ade20k_ignores_0_and_counts_from_1(ade):
    sets, classes = load_masks(ade)
    assert classes == 3
    assert [len(sets["train"]), len(sets["val"])] == [2, 2]
    truth = sets["val"][0].truth()
    assert truth[0, :5].tolist() == [255, 0, 1, 2, 255]
    assert sets["val"][0].image().size == (20, 12)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda d: (d / "annotations/training/ADE_training_00000001.png").unlink(), "00000001.jpg: has no mask"),
        (
            lambda d: Image.new("L", (9, 9), 1).save(d / "annotations/training/ADE_training_00000001.png"),
            "ADE_training_00000001.jpg: the image is 20 x 12, its truth",
        ),
        (
            lambda d: Image.new("RGB", (20, 12)).save(d / "annotations/validation/ADE_validation_00000000.png"),
            "ADE_validation_00000000.png: a mask has one channel",
        ),
        (
            lambda d: (d / "images/validation/ADE_validation_00000001.jpg").write_bytes(b"no image"),
            "ADE_validation_00000001.jpg: cannot be decoded",
        ),
        (lambda d: (d / "images/training").rename(d / "images/train"), "images/training: there is no such folder"),
    ],
)
def test_broken_masks_are_told_by_name(ade, damage, told):
    damage(ade)
    with pytest.raises(InputError, match=told):
        load_masks(ade)


@pytest.fixture
def nyu(tmp_path):
    """Six labelled images of 8 x 10 pixels, as MATLAB writes them; 1, 4, 6 train, 2, 3, 5 test."""
    images = RNG.integers(0, 255, (6, 3, 10, 8), dtype=np.uint8)
    depths = RNG.uniform(0.7, 9.0, (6, 10, 8)).astype(np.float32)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"], file["depths"] = images, depths
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1], [4], [6]]), "testNdxs": np.array([[2], [3], [5]])})
    return tmp_path, images, depths


def test_nyu_labelled_mat_with_the_official_split(nyu):
    folder, images, depths = nyu
    sets = load_depths(folder)
    assert [item.name.rpartition(":")[2] for item in sets["val"]] == ["2", "3", "5"]
    pixels = np.asarray(sets["val"][1].image())
    assert pixels.shape == (8, 10, 3)
    assert pixels[5, 7].tolist() == images[2, :, 7, 5].tolist()
    assert sets["val"][1].truth()[5, 7] == depths[2, 7, 5]


def test_nyu_without_its_split_is_told(nyu):
    (nyu[0] / "splits.mat").unlink()
    with pytest.raises(InputError, match=r"splits.mat: is missing, which tells the 795 images"):
        load_depths(nyu[0])


def test_a_split_that_names_other_images_is_told(nyu):
    savemat(nyu[0] / "splits.mat", {"trainNdxs": np.array([[1]]), "testNdxs": np.array([[7]])})
    with pytest.raises(InputError, match=r"splits.mat: names image 7, but .* holds 6"):
        load_depths(nyu[0])


def test_fast_depth_h5(tmp_path):
    for place in ("train/kitchen_0001/00001.h5", "val/official/00001.h5"):
        (tmp_path / place).parent.mkdir(parents=True)
        with h5py.File(tmp_path / place, "w") as file:
            file["rgb"] = np.arange(3 * 6 * 8, dtype=np.uint8).reshape(3, 6, 8)
            file["depth"] = np.full((6, 8), 2.5, np.float32)
    item = load_depths(tmp_path)["val"][0]
    assert np.asarray(item.image())[1, 2].tolist() == [10, 58, 106]
    assert item.truth()[3, 3] == 2.5


def test_folder_of_depths_in_millimetres_or_metres(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "depths").mkdir()
        Image.new("RGB", (8, 6)).save(tmp_path / split / "images/a.png")
    Image.fromarray(np.full((6, 8), 1500, np.uint16)).save(tmp_path / "train/depths/a.png")
    np.save(tmp_path / "val/depths/a.npy", np.full((6, 8), 1.25))
    sets = load_depths(tmp_path)
    assert sets["train"][0].truth()[0, 0] == 1.5
    assert sets["val"][0].truth()[0, 0] == 1.25
    Image.new("L", (8, 6), 3).save(tmp_path / "train/depths/a.png")
    with pytest.raises(InputError, match=r"train/depths/a.png: has 8 bits a pixel"):
        load_depths(tmp_path)
    np.save(tmp_path / "val/depths/a.npy", np.full((6, 8), np.nan))
    Image.fromarray(np.full((6, 8), 1500, np.uint16)).save(tmp_path / "train/depths/a.png")
    with pytest.raises(InputError, match=r"val/images/a.png: its depths hold values that are negative or not finite"):
        load_depths(tmp_path)
