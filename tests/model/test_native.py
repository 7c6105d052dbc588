"""The native format: one folder that stock Auto classes load, with this package imported or its code trusted."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from llava_reference import FULL, GOLDEN, TOWER, VICUNA, all_logits, encode
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from llava_s2 import load_pretrained
from llava_s2.model.assemble import assemble


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("native")
    model, processor = assemble(VICUNA, TOWER, [56, 112, 168])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def stock(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model) is LlavaForConditionalGeneration
    return model.eval(), AutoProcessor.from_pretrained(folder)


def test_stock_auto_classes_give_the_same_pixels_and_logits_however_often_it_is_saved(native, golden, tmp_path):
    ours, our_processor = load_pretrained(native)
    wanted = all_logits(ours, our_processor, golden, 2)
    source = native
    for number, load in enumerate((stock, load_pretrained, stock)):
        model, processor = load(source)
        for case in golden["cases"][:2]:
            pixels = (encode(p, case)["pixel_values"] for p in (processor, our_processor))
            assert torch.equal(*pixels)
        np.testing.assert_array_equal(all_logits(model, processor, golden, 2), wanted)
        source = tmp_path / str(number)
        model.save_pretrained(source)
        processor.save_pretrained(source)
        code = json.loads((source / "config.json").read_text())["auto_map"]["AutoConfig"].partition(".")[0]
        assert (source / f"{code}.py").is_file()


_ELSEWHERE = """
import sys
sys.modules["llava_s2"] = None  # importing it fails, as where it is not installed
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
source, image, prompt, *targets = sys.argv[1:]
for target in targets:
    model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    inputs = processor(images=Image.open(image), text=prompt, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    model.save_pretrained(target)
    processor.save_pretrained(target)
    torch.save({"logits": logits, "pixels": inputs["pixel_values"]}, target + "/seen.pt")
    source = target
"""


def test_it_loads_and_saves_again_and_again_where_this_package_is_not_installed(native, golden, tmp_path):
    case = golden["cases"][0]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    targets = [str(tmp_path / "once"), str(tmp_path / "twice")]
    arguments = [native, GOLDEN / case["image"], case["prompt"], *targets]
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    model, processor = load_pretrained(native)
    inputs = encode(processor, case)
    for target in targets:
        seen = torch.load(f"{target}/seen.pt")
        assert torch.equal(seen["pixels"], inputs["pixel_values"])
        with torch.no_grad():
            assert torch.equal(seen["logits"], model(**inputs).logits[0, -1])
    again, processor_again = load_pretrained(targets[-1])  # and here once more
    np.testing.assert_array_equal(
        all_logits(again, processor_again, golden, 1), all_logits(model, processor, golden, 1)
    )


def test_a_mixed_batch_is_padded_where_generation_needs_it(native, golden, tmp_path):
    """Saved and loaded by stock classes, ``padding=True`` alone gives each row the answer that it has alone."""
    stock(native)[1].save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    model, _ = stock(native)
    questions = ["What?", "What colour is the small thing on the left, and what stands behind it?", "Where is it now?"]
    texts = [f"USER: <image>\n{question} ASSISTANT:" for question in questions]
    images = [Image.open(GOLDEN / case["image"]) for case in golden["cases"][:3]]
    batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
    written = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, -4:]
    for row, (text, image) in enumerate(zip(texts, images, strict=True)):
        alone = processor(text=text, images=image, return_tensors="pt")
        assert torch.equal(model.generate(**alone, max_new_tokens=4, do_sample=False)[0, -4:], written[row])


def test_a_llava_without_s2_carries_no_code_of_the_tower(tmp_path):
    import transformers

    config = transformers.LlavaConfig(text_config={"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 32})
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, transformers.LlavaConfig)
    loaded.save_pretrained(tmp_path / "again")
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["config.json"]
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_a_processor_that_reads_images_with_torchvision_is_given_pils_pixels(golden, tmp_path):
    """Folders that were written before name stock LLaVA's image processor, which AutoProcessor loads on torchvision."""
    _, processor = load_pretrained(FULL, vision_tower=TOWER)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["image_processor_type"] = "LlavaImageProcessor"
    del settings["image_processor"]["auto_map"]
    path.write_text(json.dumps(settings))
    from llava_s2.model.processor import load_processor

    case = golden["cases"][0]
    again = encode(load_processor(tmp_path), case)["pixel_values"]
    assert torch.equal(again, encode(processor, case)["pixel_values"])
    np.testing.assert_allclose(again[0], golden["expected"]["pixel_values_0"], atol=1e-5, rtol=0)
