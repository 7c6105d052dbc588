"""Image preparation against PIL and numpy by hand, and the number of tokens an image takes."""

import numpy as np
import pytest
from llava_reference import GOLDEN, VICUNA
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from llava_s2.errors import InputError
from llava_s2.model.processor import build_processor, load_processor, num_image_tokens, set_template
from llava_s2.model.tokenizer import load_tokenizer
from llava_s2.s2 import S2VisionConfig

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SIDE = 168
CONFIG = S2VisionConfig(
    backbone_config={"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14},
    scales=[56, 112, SIDE],
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(VICUNA)


def by_hand(image, aspect_ratio):
    """What LLaVA's code does to a picture, written out."""
    width, height = image.size
    if aspect_ratio == "pad":
        side = max(width, height)
        square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in MEAN))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    elif aspect_ratio == "square":
        short = min(width, height)
        size = (SIDE, int(SIDE * height / short)) if width <= height else (int(SIDE * width / short), SIDE)
        image = image.resize(size, Image.Resampling.BICUBIC)
        # CLIPImageProcessor cuts from the rounded-down middle.
        left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
        image = image.crop((left, top, left + SIDE, top + SIDE))
    else:
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return ((np.asarray(image) / 255 - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("aspect_ratio", ["pad", "square", "resize"])
def test_pixel_values_after_saving_and_loading(aspect_ratio, tokenizer, tmp_path):
    processor = build_processor(tokenizer, CONFIG, MEAN, STD, image_aspect_ratio=aspect_ratio)
    processor.save_pretrained(tmp_path)
    generator = np.random.default_rng(0)
    pictures = [Image.open(GOLDEN / "images" / f"{number}.png").convert("RGB") for number in range(4)]
    for size in ((57, 31), (31, 58), (300, 301), (400, 169)):
        pictures.append(Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)))
    for one in (processor, load_processor(tmp_path)):
        for picture in pictures:
            got = one(images=picture, text="<image>", return_tensors="np")["pixel_values"]
            assert got.dtype == np.float32
            np.testing.assert_allclose(got[0], by_hand(picture, aspect_ratio), atol=1e-5, rtol=0)


def test_processors_of_hugging_face_count_their_tokens_from_crop_or_size(tokenizer):
    processor = build_processor(tokenizer, CONFIG, MEAN, STD)
    cropped = CLIPImageProcessorPil(size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84})
    resized = SiglipImageProcessorPil(size={"height": 126, "width": 126})
    for image_processor, tokens in ((cropped, 4), (resized, 9)):
        processor.image_processor = image_processor
        inputs = processor(images=Image.new("RGB", (200, 150)), text="<image>", return_tensors="np")
        assert num_image_tokens(processor) == (inputs["input_ids"] == processor.image_token_id).sum() == tokens
    processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 84}, do_center_crop=False)
    with pytest.raises(InputError, match="neither crops images to one size"):
        num_image_tokens(processor)


def test_a_template_set_later_is_checked_like_the_first(tokenizer):
    processor = build_processor(tokenizer, CONFIG, MEAN, STD)
    set_template(processor, "llama_2")
    assert processor.apply_chat_template([{"role": "user", "content": "Q"}]).endswith("<</SYS>>\n\nQ [/INST]")
    for name, told in (("chatml", r"<\|im_end\|>"), ("v7", "not known; use vicuna_v1")):
        with pytest.raises(InputError, match=told):
            set_template(processor, name)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_image_takes_the_towers_number_of_tokens(count, tokenizer):
    processor = build_processor(tokenizer, CONFIG, MEAN, STD)
    pictures = [Image.new("RGB", (9 + number, 20)) for number in range(count)]
    inputs = processor(images=pictures or None, text="A <image> " * count + "B", return_tensors="np")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == count * CONFIG.num_image_tokens == count * 16
    assert ("pixel_values" in inputs) == bool(count)
    assert not count or inputs["pixel_values"].shape == (count, 3, SIDE, SIDE)


@pytest.mark.parametrize(("text", "count"), [("<image>", 0), ("<image>", 2), ("none", 1), ("<image><image>", 1)])
def test_other_numbers_of_images_than_placeholders(text, count, tokenizer):
    processor = build_processor(tokenizer, CONFIG, MEAN, STD)
    with pytest.raises(ValueError, match="<image>"):
        processor(images=[Image.new("RGB", (20, 20))] * count or None, text=text)


@pytest.mark.parametrize("setting", [{"image_aspect_ratio": "anyres"}, {"template": "v7"}])
def test_unknown_settings(setting, tokenizer):
    with pytest.raises(ValueError, match=next(iter(setting.values()))):
        build_processor(tokenizer, CONFIG, MEAN, STD, **setting)
