"""Features of frozen towers: what they are, and that they are computed once, also over a stop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionModel

from llava_s2.s2 import multiscale_forward
from llava_s2.studies.feature_cache import Extractor, ScaleSetting, cropped
from llava_s2.studies.image_sets import load_image_sets
from llava_s2.studies.study_towers import load_tower


@pytest.fixture
def pictures(image_folder):
    return cropped(load_image_sets(image_folder)["val"], crop=1)


def reference(folder, images, scales, side=32):
    """The paper's features, by transformers' own model and the wrapper: last block, normalised, without CLS."""
    model = CLIPVisionModel.from_pretrained(folder).eval()
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (torch.from_numpy(np.stack([np.asarray(i) for i in images])) / 255 - mean) / std

    def features(tiles):
        tokens = model(tiles, output_hidden_states=True).hidden_states[-1]
        return F.layer_norm(tokens, tokens.shape[-1:])

    with torch.no_grad():
        out = multiscale_forward(
            features, pixels.permute(0, 3, 1, 2), img_sizes=scales, max_split_size=side, num_prefix_token=1
        )
    return out[:, 1:]


@pytest.mark.parametrize("full_resolution", [False, True])
def test_scales_are_made_from_the_base_image_or_from_the_file(towers, pictures, tmp_path, full_resolution):
    setting = ScaleSetting((32, 64), 32, full_resolution)
    found = Extractor(tmp_path).features(towers[0], setting, pictures)[np.arange(12)]
    images = [pictures.load(index, 64 if full_resolution else 32) for index in range(12)]
    expected = reference(towers[0], images, [32, 64])
    assert found.shape == (12, 16, 16)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # they are kept in float16


def test_pooled_features_are_the_mean_over_positions(towers, pictures, tmp_path):
    setting = ScaleSetting((32, 96), 32)
    whole = Extractor(tmp_path / "a").features(towers[0], setting, pictures)[np.arange(12)]
    pooled = Extractor(tmp_path / "b", pool=True).features(towers[0], setting, pictures)[[3, 1, 3]]
    torch.testing.assert_close(pooled[:, 0], whole.mean(1)[[3, 1, 3]], atol=2e-3, rtol=2e-3)


def test_the_output_may_have_a_larger_scales_grid(towers, pictures, tmp_path):
    setting = ScaleSetting((32, 64), 64)
    found = Extractor(tmp_path).features(towers[0], setting, pictures)[[0]]
    assert found.shape == (1, 64, 16)
    images = [pictures.load(0, 64)]
    expected = load_tower(towers[0], 32)(
        load_tower(towers[0], 32).normalise(torch.from_numpy(np.stack(images))), [32, 64], 1
    )
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), atol=2e-3, rtol=2e-3)


def test_a_tower_at_another_size_has_its_position_embeddings_interpolated(towers):
    stock = CLIPVisionModel.from_pretrained(towers[0]).eval()
    tower = load_tower(towers[0], 64)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = stock(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-1][:, 1:]
        found = tower(pixels, [64]).flatten(2).transpose(1, 2)
    expected = F.layer_norm(tokens, tokens.shape[-1:])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(load_tower(towers[0], 32).s2.state_dict()["backbone.embeddings.position_embedding.weight"][0],
                       tower.s2.state_dict()["backbone.embeddings.position_embedding.weight"][0])  # fmt: skip


def test_a_stopped_extraction_goes_on_where_it_was(towers, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("llava_s2.studies.feature_cache._FLUSH_SECONDS", 0)
    loaded = []

    def until(last):
        def load(index, side):
            if index > last:
                raise KeyboardInterrupt
            loaded.append(index)
            return pictures.load(index, side)

        return replace(pictures, load=load)

    setting = ScaleSetting((32,), 32)
    with pytest.raises(KeyboardInterrupt):
        Extractor(tmp_path / "stopped").features(towers[0], setting, until(9))
    loaded.clear()
    resumed = Extractor(tmp_path / "stopped").features(towers[0], setting, until(99))
    assert sorted(loaded) == [8, 9, 10, 11]
    whole = Extractor(tmp_path / "whole").features(towers[0], setting, pictures)
    assert torch.equal(resumed[np.arange(12)], whole[np.arange(12)])
    loaded.clear()
    Extractor(tmp_path / "stopped").features(towers[0], setting, until(99))
    assert not loaded


def test_other_images_or_weights_are_not_read_from_the_cache(towers, pictures, tmp_path, image_folder):
    extractor = Extractor(tmp_path)
    setting = ScaleSetting((32,), 32)
    first = extractor.features(towers[0], setting, pictures)[np.arange(12)]
    other = extractor.features(towers[0], setting, cropped(load_image_sets(image_folder)["train"].first(12), crop=1))
    assert not torch.equal(first, other[np.arange(12)])
    assert extractor.features(towers[1], setting, pictures).channels == 12
    assert len(list(tmp_path.iterdir())) == 3
