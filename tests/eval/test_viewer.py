"""``llava-s2 report --html`` in Chromium: one file, no server."""

import json

import pytest
from playwright.sync_api import sync_playwright
from tiny_model import MODEL
from vstar_data import ATTRIBUTES, write_vstar

from llava_s2 import cli


@pytest.fixture
def runs(tmp_path, loads):
    data = write_vstar(tmp_path / "vstar")
    question = data / "direct_attributes/sa_1.json"
    question.write_text(question.read_text().replace("the cup?", "the </script><b>cup</b>?"))
    runs = [tmp_path / "full", tmp_path / "blind"]
    for run, more in zip(runs, ([], ["--text-only"]), strict=True):
        where = ["--data", str(data), "--output", str(run)]
        assert cli.main(["eval", "vstar", *MODEL, *where, *more]) == 0
    # Whatever the tiny model said: sa_1 is right in the first run alone, sa_2 in both, the others in none.
    for run, right in zip(runs, ({"sa_1", "sa_2"}, {"sa_2"}), strict=True):
        lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        graded = [{**line, "correct": line["question_id"].rpartition("/")[2] in right} for line in lines]
        graded[0] |= (
            {"text": "long " * 30_000} if run == runs[0] else {"prompt": "asked in another way", "text": "<b>x</b>"}
        )
        (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in graded))
    return runs


def test_the_page_shows_filters_and_needs_no_server(runs, tmp_path):
    assert cli.main(["report", *map(str, runs), "--output", str(tmp_path / "both"), "--html"]) == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        asked, faults = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto((tmp_path / "both/report.html").as_uri())
        assert page.locator("article").count() == 5 and "5 of 5 questions" in page.locator("#count").inner_text()
        assert (
            page.locator("article b").count() == 0 and "asked in another way" in page.locator("dl").first.inner_text()
        )
        assert page.locator("article").first.evaluate("article => article.scrollHeight") < 2000
        page.get_by_label("Show").select_option(label="only A right")
        assert [h.inner_text() for h in page.locator("article h2").all()] == [
            "direct_attributes/sa_1 (direct_attributes)"
        ]
        article = page.locator("article").first
        assert "</script><b>cup</b>" in article.locator("pre").inner_text()
        assert ATTRIBUTES["sa_1"][1][0] in article.inner_text() and article.locator("dd.right").count() == 1
        images = article.locator("img")
        assert images.count() == 2  # the whole, and the part around the target
        assert images.evaluate_all("all => all.every(image => image.complete && image.naturalWidth > 0)")
        page.get_by_label("Show").select_option(label="all questions")
        page.get_by_label("Category").select_option("relative_position")
        assert page.locator("article").count() == 2
        page.get_by_label("Words").fill("lamp")
        assert page.locator("article").count() == 1
        browser.close()
    assert not faults and all(url.startswith(("file:", "data:")) for url in asked)
