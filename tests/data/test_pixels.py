"""Pictures that travel as bytes become, bit by bit, what the image processor would have made of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from llava_s2 import S2VisionConfig
from llava_s2.data.pixels import Normalizer, image_bytes
from llava_s2.model.processor import build_processor
from llava_s2.model.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"


@pytest.mark.parametrize("aspect_ratio", ["pad", "square", "resize"])  # keep prepares as pad
def test_bytes_then_normalised_equal_the_processor(aspect_ratio):
    tower = S2VisionConfig(backbone_config=AutoConfig.from_pretrained(GOLDEN / "clip-tiny"), scales=[56, 112])
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    tokenizer = load_tokenizer(GOLDEN / "vicuna-tiny")
    processor = build_processor(tokenizer, tower, mean, std, image_aspect_ratio=aspect_ratio).image_processor
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, size, np.uint8)) for size in ((300, 200, 3), (50, 90, 3))]
    travelled = image_bytes(processor, images)
    assert travelled.dtype == torch.uint8
    expected = processor(images, return_tensors="pt")["pixel_values"]
    assert expected.dtype == torch.float32
    assert Normalizer(processor)(travelled).equal(expected)
