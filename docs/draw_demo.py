"""Takes docs/images/demo_*.jpg of the demo on the embedded default. Run: python docs/draw_demo.py --baseline TWIN

TWIN is a single-scale model, as the quickstart's playground/quickstart/models/single. Needs Chromium and playwright.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

_ROOT = Path(__file__).parents[1]
_FOLDER = Path(__file__).parent / "images"
_WIDE: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
_PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "device_scale_factor": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", required=True, metavar="TWIN")
    parser.add_argument("--output", type=Path, default=_FOLDER)
    args = parser.parse_args()
    sys.path.insert(0, str(_ROOT / "tests/serve"))  # the tests know how to start the demo and a browser
    from demo_browser import Demo, Visit, launch

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        demo = Demo(Path(folder) / "log", "--baseline", args.baseline)
        try:
            browser = launch(playwright)
            for name, scheme, context, act in (
                ("chat", "light", _WIDE, _chat),
                ("compare", "light", _WIDE, _compare),
                ("likelihood", "dark", _WIDE, _likelihood),
                ("sees", "light", _WIDE, _sees),
                ("phone", "dark", _PHONE, _chat),
            ):
                _shoot(Visit, browser, demo.url, act, args.output / f"demo_{name}.jpg", color_scheme=scheme, **context)
        finally:
            demo.stop()


def _shoot(visiting: Any, browser: Browser, url: str, act: Callable[[Any], None], file: Path, **context: Any) -> None:
    visit = visiting(browser, url, **context)
    visit.page.locator("#examples button").first.click()
    expect(visit.thumbnails()).to_have_count(1)
    act(visit)
    visit.page.mouse.move(0, 0)
    visit.page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    visit.page.wait_for_timeout(500)
    visit.page.screenshot(path=file, type="jpeg", quality=80, full_page=context["viewport"]["width"] > 640)
    with Image.open(file) as image:
        print(f"{file.name}: {image.width} x {image.height}, {file.stat().st_size / 1000:.0f} kB")
    visit.close()


def _chat(visit: Any) -> None:
    for number, question in enumerate((visit.question.input_value(), "What is the color of the cup?"), start=1):
        visit.ask(question)
        expect(visit.bubbles("bot")).to_have_count(number)
        visit.wait_until_answered()


def _compare(visit: Any) -> None:
    visit.tab("Compare")
    visit.page.locator("#ask-both").click()
    expect(visit.page.locator("#timing-b")).to_contain_text("new tokens")


def _likelihood(visit: Any) -> None:
    visit.tab("Likelihood")
    visit.page.locator("#weigh").click()
    expect(visit.page.locator("table.s2-options")).to_have_count(2)


def _sees(visit: Any) -> None:
    """A small thing that only the larger scales resolve: the phone of the first example."""
    _chat(visit)
    visit.tab("What the model sees")
    level, spot = visit.page.locator("#level-448 img"), visit.page.locator("#spot-3 img")
    expect(spot).to_be_visible()
    before, box = spot.get_attribute("src"), level.bounding_box()
    level.click(position={"x": 0.225 * box["width"], "y": 0.222 * box["height"]})
    expect(spot).not_to_have_attribute("src", before)


if __name__ == "__main__":
    main()
