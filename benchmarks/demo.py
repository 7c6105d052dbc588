"""How soon the demo is there, and how soon it answers about a 12-megapixel JPEG, seen from a browser.

    python benchmarks/demo.py --output benchmarks/results/demo.json [-- demo's flags]

Starts ``llava-s2 demo`` on a free port of the loopback, drives it with a headless Chromium (--chromium names it) and
stops it. Goals: the page within 10 seconds of the model, the first token within 5 seconds of sending the question.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from playwright.sync_api import Page, expect, sync_playwright

SIDES = (4000, 3000)
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("demo", nargs="*", help="flags of llava-s2 demo")
    args = parser.parse_args()
    photos = [_photo(seed) for seed in range(2)]
    expect.set_options(timeout=60_000)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=_FLAGS)
        page = browser.new_page()
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "llava_s2.cli", "demo", "--port", "0", *args.demo]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            url, after_model = _wait(process, log)
            seconds = _drive(page, url, photos)
        finally:
            process.terminate()
            process.wait(30)
            browser.close()
    seconds["page_after_model"] = round(seconds["page_after_model"] + after_model, 2)
    goals = seconds["page_after_model"] < 10 and max(map(_first_token, seconds["questions"])) < 5
    result = {
        "command": "python benchmarks/demo.py",
        "photo": {"pixels": list(SIDES), "jpeg_mb": round(len(photos[0]) / 1e6, 1)},
        "seconds": seconds,
        "goals_met": goals,
        "machine": f"{len(os.sched_getaffinity(0))} cores, no GPU",
    }
    print(json.dumps(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _photo(seed: int) -> bytes:
    """A JPEG of a photo's size: soft shapes under a sensor's grain."""
    chance = np.random.default_rng(seed)
    soft = Image.fromarray(chance.integers(0, 256, (30, 40, 3), np.uint8)).resize(SIDES, Image.Resampling.BICUBIC)
    grain = chance.normal(0, 6, (SIDES[1], SIDES[0], 1)).astype(np.float32)
    photo = Image.fromarray((np.asarray(soft, np.float32) + grain).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    photo.filter(ImageFilter.GaussianBlur(0.7)).save(file, "JPEG", quality=92)
    return file.getvalue()


def _wait(process: subprocess.Popen, log: Path) -> tuple[str, float]:
    """The page's address, and how long after the model the server says to be there."""
    while process.poll() is None:
        if found := re.search(r"(http://\S+)\s+\(ready ([\d.]+) s", log.read_text()):
            return found[1], float(found[2])
        time.sleep(0.01)
    raise SystemExit(log.read_text())


def _drive(page: Page, url: str, photos: list[bytes]) -> dict[str, Any]:
    start = time.perf_counter()
    page.goto(url)
    question = page.locator("#question textarea")
    expect(question).to_be_visible()
    ready = time.perf_counter() - start

    first, second = ({"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photo} for photo in photos)
    start = time.perf_counter()
    page.locator("#images input[type=file]").set_input_files([first])  # type: ignore[list-item]
    expect(page.locator("#images .thumbnail-item img, #images .thumbnail-lg img")).to_have_count(1)
    questions = [{"what": "an image on the page", "until_on_the_page": time.perf_counter() - start, **_ask(page, 1)}]
    questions.append({"what": "the same image again", **_ask(page, 2)})

    page.locator("#clear").click()
    expect(page.locator("#conversation .user.message")).to_have_count(0)
    start = time.perf_counter()
    page.locator("#question input[type=file]").set_input_files([second])  # type: ignore[list-item]
    expect(page.locator("#question .thumbnail-item").first).to_be_visible()
    uploaded = time.perf_counter() - start
    questions.append({"what": "an image sent along with the question", "until_uploaded": uploaded, **_ask(page, 1)})
    return {"page_after_model": ready, "questions": [_rounded(asked) for asked in questions]}


def _ask(page: Page, number: int) -> dict[str, Any]:
    page.locator("#question textarea").fill("What is in the image?")
    start = time.perf_counter()
    page.locator("#question textarea").press("Enter")
    answer = page.locator("#conversation .bot.message").nth(number - 1)
    expect(answer).to_have_text(re.compile(r"^(?!Loading content)\w"))  # what Gradio shows until there is a word
    first_token = time.perf_counter() - start
    expect(page.locator("#regenerate")).to_be_enabled()
    return {"first_token": first_token, "stages": page.locator("#timing").inner_text()}


def _first_token(asked: dict[str, Any]) -> float:
    return float(asked["first_token"])


def _rounded(asked: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in asked.items()}


if __name__ == "__main__":
    main()
