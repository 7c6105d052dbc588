"""The demo in a process of its own, and a browser to drive it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, Playwright, expect

GOLDEN = Path(__file__).parents[1] / "golden/llava_tiny"
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
_FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

expect.set_options(timeout=120_000)  # for what does not come at all: a busy machine is no fault


class Demo:
    """``llava-s2 demo`` on a free port."""

    def __init__(self, log: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "llava_s2.cli", "demo", "--port", "0", *flags]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stderr=file, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:  # it prints its address when it is ready, and then nothing
            lines.append(line)
            if found := re.search(r"(http://\S+)", line):
                self.url = found[1]
                return
        raise AssertionError(log.read_text() + "".join(lines))

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path="/usr/bin/chromium", args=_FLAGS)


class Visit:
    """The page in a window of its own, and what happened in it that should not.

    Args:
        opening: whether the example that the page opens with stays on it.

    Attributes:
        trouble: errors in the console (a script that the page's policy stopped is one) and requests to anywhere else.
    """

    def __init__(self, browser: Browser, url: str, *, opening: bool = False, **context) -> None:
        self._context = browser.new_context(**context)
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(120_000)
        self.trouble: list[str] = []
        self.page.on("console", lambda m: self.trouble.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else self._left(r.url))
        self.page.goto(url)
        self.question = self.page.locator("#question textarea")
        expect(self.question).not_to_have_value("")
        self.truth = self.page.locator("#truth")
        expect(self.truth).to_contain_text(re.compile("(right|wrong).*(right|wrong)"))
        if not opening:
            self.page.locator("#images").get_by_label("Clear").click()
            expect(self.thumbnails()).to_have_count(0)
            expect(self.truth).to_be_hidden()
            self.question.fill("")

    def _left(self, url: str) -> None:
        self.trouble.append(f"asked {url}")

    def close(self) -> None:
        self._context.close()

    def upload(self, *files) -> None:
        self.page.locator("#images input[type=file]").set_input_files(list(files))

    def fill(self, box: str, text: str) -> None:
        """Fills a tab's box, once the opening example is in it: a tab gets its values after it is shown."""
        area = self.page.locator(f"{box} textarea")
        expect(area).not_to_have_value("")
        area.fill(text)
        expect(area).to_have_value(text)

    def thumbnails(self):
        return self.page.locator("#images .thumbnail-item img, #images .thumbnail-lg img")

    def ask(self, text: str) -> None:
        self._answered = self.turns()
        self.question.fill(text)
        self.question.press("Enter")

    def bubbles(self, role: str):
        """Of the conversation: ``user`` or ``bot``."""
        return self.page.locator(f"#conversation .{role}.message")

    def turns(self) -> int:
        """How many answers have ended on this page, as it says itself."""
        found = re.search(r"Answer (\d+) is", self.page.locator("#ended").text_content() or "")
        return int(found[1]) if found else 0

    def wait_until_answered(self, since: int | None = None) -> None:
        """Until more answers have ended than before the last question, or than ``since``."""
        before = self._answered if since is None else since
        expect(self.page.locator("#ended")).to_contain_text(f"Answer {before + 1} is complete")

    def transcript(self) -> str:
        area = self.page.locator("#transcript textarea")
        if not area.is_visible():
            self.page.get_by_role("button", name="Transcript").click()
        return area.input_value()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()
