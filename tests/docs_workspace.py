"""A folder in which every name that the docs use is there, small: checkpoints under their hub ids, data, images.

A local folder wins over a hub id of the same name, so the commands of README and docs run as they stand.
"""

import json
import shutil
from pathlib import Path

from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from llava_s2.cli import main

GOLDEN = Path(__file__).parent / "golden" / "llava_tiny"
ROOT = Path(__file__).parents[1]
QUESTION, ANSWER = "<image>\nWhat is the colour of the cup?", "It is red."


def build(folder: Path) -> None:
    """Fills ``folder``; the caller makes it the working directory."""
    for name in ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-13b-v1.5"):
        shutil.copytree(GOLDEN / "vicuna-tiny", folder / name)
    shutil.copytree(GOLDEN / "clip-tiny", folder / "clip-tiny")
    shutil.copytree(GOLDEN / "llava-tiny-s2-lora", folder / "bfshi/llava-v1.5-7b-s2-lora")
    clip = folder / "openai/clip-vit-large-patch14-336"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(image_size=336, patch_size=14, **sizes)).save_pretrained(clip)
    CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336).save_pretrained(clip)
    parts = ["--llm", str(folder / "lmsys/vicuna-7b-v1.5"), "--vision_tower", str(clip)]
    _run("init", str(folder / "single"), *parts, "--s2_scales", "336")
    named = ["--vision_tower", str(clip), "--base", str(folder / "lmsys/vicuna-7b-v1.5")]
    _run("convert", str(folder / "single"), str(folder / "liuhaotian/llava-v1.5-7b"), "--to", "llava", *named)
    _run("convert", str(folder / "single"), str(folder / "llava-hf/llava-1.5-7b-hf"), "--to", "hf", *named[:2])
    for name in ("photos/kitchen.jpg", "images/kitchen.jpg", "photo.jpg", "large.jpg"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        Image.effect_mandelbrot((640, 480), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(path)
    records = [_record(number, "kitchen.jpg") for number in range(4)]
    for name in ("mine.json", "blip_laion_cc_sbu_558k.json", "llava_v1_5_mix665k.json"):
        (folder / name).write_text(json.dumps(records))
    _vstar(folder / "vstar_bench")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")


def _record(number: int, image: str) -> dict:
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
    return {"id": str(number), "image": image, "conversations": turns}


def _vstar(folder: Path) -> None:
    for kind, options in (("direct_attributes", ["red", "blue"]), ("relative_position", ["left", "right"])):
        for number in range(2):
            path = folder / kind / f"sa_{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (400, 300), (200, 40 * number, 30)).save(path)
            sentences = [f"The cup is {option}." for option in options]
            question = {"question": "What is the cup?", "options": sentences, "target_object": ["cup"]}
            path.with_suffix(".json").write_text(json.dumps({**question, "bbox": [[10, 10, 40, 40]]}))


def _run(*words: str) -> None:
    assert main(words) == 0, words
