import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel


def noise(seed, side=40, kind=0):
    """An image of coarse noise, its mean colour told by its kind."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 120, (5, 5, 3), dtype=np.uint8)).resize((side, side))
    return Image.fromarray(np.asarray(coarse) + np.array([[60, 0, 0], [0, 60, 0], [0, 0, 60]], np.uint8)[kind % 3])


def make_tower(folder, width, seed):
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    """A smaller and a larger tower of 32 x 32 pixels, 4 x 4 features."""
    folder = tmp_path_factory.mktemp("towers")
    return make_tower(folder / "small", 8, 0), make_tower(folder / "large", 12, 1)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """ImageNet's layout: three classes that differ in colour."""
    folder = tmp_path_factory.mktemp("imagenet")
    for split, count in (("train", 8), ("val", 4)):
        for kind, name in enumerate(("n01440764", "n01443537", "n02102040")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                noise(100 * kind + index + 50 * (split == "val"), kind=kind).save(
                    folder / split / name / f"{name}_{index}.png"
                )
    return folder
