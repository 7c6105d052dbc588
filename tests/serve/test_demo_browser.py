"""The demo in a real browser, on the tiny reference model: its answers are random words, the same ones every time."""

import json
import re
import signal

import pytest
from axe_playwright_python.sync_playwright import Axe
from demo_browser import GOLDEN, Demo, Visit, launch
from hostile import HOSTILE
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from llava_s2.serve.demo.demo_examples import examples

CASE = json.loads((GOLDEN / "cases.json").read_text())["cases"][0]
PICTURE = GOLDEN / CASE["image"]


@pytest.fixture(scope="module")
def demo(loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    for part in loaded:  # a baseline finds its tower by itself
        part.save_pretrained(folder / "baseline")
    model = [
        "--model",
        str(GOLDEN / "llava-tiny-s2"),
        "--vision_tower",
        str(GOLDEN / "clip-tiny"),
        "--dtype",
        "float32",
    ]
    demo = Demo(
        folder / "log",
        *model,
        "--baseline",
        str(folder / "baseline"),
        "--max-new-tokens",
        "8",
        "--more-models",
        str(folder / "baseline"),
    )
    yield demo
    demo.stop()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, demo, request):
    visit = Visit(browser, demo.url, **getattr(request, "param", {}))
    yield visit
    visit.close()
    assert not visit.trouble


@pytest.fixture(scope="module")
def expected(loaded):
    return loaded[1].decode(CASE["greedy_full"], skip_special_tokens=True).strip()


@pytest.mark.parametrize("visit", [{"opening": True}], indirect=True)
def test_the_page_opens_on_an_example_with_its_truth_and_a_reload_keeps_the_chat(visit):
    page = visit.page
    example = examples()[0]
    expect(visit.question).to_have_value(example.question)
    expect(visit.truth).to_contain_text(example.options[0])
    visit.tab("Likelihood")
    expect(page.locator("#options textarea")).to_have_value("\n".join(sorted(example.options)))
    visit.tab("Chat")
    with page.context.expect_page() as opened:
        page.locator("#full-size a").click()
    size = opened.value.evaluate("[document.images[0].naturalWidth, document.images[0].naturalHeight]")
    assert tuple(size) == example.image.size
    opened.value.close()
    visit.ask("What?")
    visit.wait_until_answered()
    transcript = visit.transcript()
    page.reload()
    expect(visit.bubbles("bot")).to_have_count(1)
    assert visit.transcript() == transcript
    expect(visit.thumbnails()).to_have_count(1)
    visit._answered = 1
    visit.question.fill("And?")
    visit.question.press("Enter")
    visit.wait_until_answered()
    assert visit.transcript().startswith(transcript) and visit.transcript().count("[image") == 1
    visit.trouble.clear()  # of the streams that the reload cut


def test_an_image_of_the_visitors_own_replaces_the_example(browser, demo):
    visit = Visit(browser, demo.url, opening=True)
    visit.upload(PICTURE)
    expect(visit.truth).to_be_hidden()
    expect(visit.thumbnails()).to_have_count(1)
    expect(visit.page.locator("#full-size a")).to_have_text("240 x 240")
    visit.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser, demo, scheme):
    axe = Axe()
    visit = Visit(browser, demo.url, opening=True, color_scheme=scheme)
    visit.ask("What?")
    visit.wait_until_answered()
    for name in ("Chat", "Compare", "Likelihood", "What the model sees"):
        visit.tab(name)
        visit.page.wait_for_timeout(300)  # what fades in is measured whole
        found = axe.run(visit.page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not serious, [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in serious]
    visit.close()


def shown(visit):
    visit.upload(PICTURE)
    expect(visit.thumbnails()).to_have_count(1)


def test_a_conversation(visit, expected):
    shown(visit)
    visit.ask(CASE["question"])
    visit.wait_until_answered()
    assert expected in visit.transcript()
    expect(visit.page.locator("#timing")).to_contain_text(re.compile(r"tower .* 8 new tokens"))

    visit.ask("And what else?")
    expect(visit.bubbles("bot")).to_have_count(2)
    visit.wait_until_answered()
    transcript = visit.transcript()
    assert transcript.count("[image") == 1 and transcript.count("User: ") == 2

    answered = visit.turns()
    visit.page.locator("#regenerate").click()
    visit.wait_until_answered(answered)
    expect(visit.page.locator("#transcript textarea")).to_have_value(transcript)  # the likeliest words are the same

    visit.page.locator("#edit").click()
    expect(visit.question).to_have_value("And what else?")
    expect(visit.bubbles("bot")).to_have_count(1)
    visit.ask("And why?")
    expect(visit.bubbles("bot")).to_have_count(2)
    visit.wait_until_answered()
    assert "And why?" in visit.transcript() and "what else" not in visit.transcript()

    with visit.page.expect_download() as download:
        visit.page.locator("#download").click()
    assert download.value.path().read_text() == visit.transcript()

    visit.page.locator("#clear").click()
    expect(visit.bubbles("user")).to_have_count(0)
    visit.ask(CASE["question"])
    visit.wait_until_answered()
    assert visit.transcript().count("[image") == 1 and expected in visit.transcript()


def test_an_answer_streams_and_can_be_stopped(visit, demo):
    visit.page.get_by_role("button", name="Settings").click()
    most = visit.page.get_by_label("number input for Most new tokens")
    most.fill("1900")
    most.press("Tab")
    temperature = visit.page.get_by_label("number input for Temperature (0: the likeliest token)")
    temperature.fill("2")  # the likeliest tokens of this model go round in a circle, and such an answer ends by itself
    temperature.press("Tab")
    visit.ask("Talk.")
    answer = visit.bubbles("bot")
    # Not what Gradio shows until there is a word. \w is ASCII in a browser; at this temperature any script comes.
    words = re.compile(r"^(?!\s*Loading content)\s*\S")
    expect(answer).to_have_text(words)
    begun = answer.inner_text()
    expect(answer).not_to_have_text(begun)
    assert len(answer.inner_text()) > len(begun)
    visit.page.locator("#clear").click()
    expect(visit.bubbles("bot")).to_have_count(0)
    visit.wait_until_answered()  # the page says that the stopped answer has ended
    visit.ask("Talk.")
    expect(answer).to_have_text(words)
    demo.process.send_signal(signal.SIGSTOP)  # the small model would have said it all before a busy browser clicks
    with visit.page.expect_request(lambda request: request.method == "POST"):
        visit.page.locator("#stop").dispatch_event("click")
    demo.process.send_signal(signal.SIGCONT)
    expect(visit.page.locator("#timing")).to_contain_text("stopped")
    visit.wait_until_answered()
    made = int(re.search(r"(\d+) new tokens", visit.page.locator("#timing").inner_text())[1])
    assert made < 1900
    visit.page.locator("#clear").click()
    expect(visit.bubbles("bot")).to_have_count(0)
    visit.ask("Talk.")
    expect(answer).to_have_text(re.compile(r"\w"))
    visit.page.locator("#clear").click()  # stops as well
    expect(visit.page.locator("#stop")).to_be_hidden()


def test_several_images(visit, tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "b.png")
    visit.upload(PICTURE, tmp_path / "b.png")
    expect(visit.thumbnails()).to_have_count(2)
    visit.ask("What is different?")
    visit.wait_until_answered()
    assert visit.transcript().count("[image") == 2 and "[image 60 x 40]" in visit.transcript()


def test_comparison(visit, expected):
    shown(visit)
    visit.tab("Compare")
    visit.fill("#compared", CASE["question"])
    visit.page.locator("#ask-both").click()
    for answer in ("#answer-a textarea", "#answer-b textarea"):
        expect(visit.page.locator(answer)).to_have_value(expected)
    stop = visit.page.locator("#stop-both")
    expect(stop).to_be_hidden()
    visit.fill("#compared", "word " * 3000)
    visit.page.locator("#ask-both").click()
    told(visit, "2048")
    expect(stop).to_be_hidden()


def test_likelihood(visit):
    shown(visit)
    visit.tab("Likelihood")
    visit.fill("#weighed", CASE["question"])
    visit.fill("#options", "\n".join(CASE["options"]))
    visit.page.locator("#weigh").click()
    table = visit.page.locator("table.s2-options").first
    expect(table).to_be_visible()
    rows = {}
    for row in table.locator("tbody tr").all():
        option, _, probability, loss = row.locator("th, td").all_inner_texts()
        rows[option] = float(probability.rstrip("%")), loss
    assert rows.keys() == set(CASE["options"])
    assert sum(probability for probability, _ in rows.values()) == pytest.approx(100, abs=0.2)
    for option, loss in zip(CASE["options"], CASE["option_losses_full"], strict=True):
        assert float(rows[option][1].split()[0]) == pytest.approx(loss, abs=2e-3)
        assert ("V* choice" in rows[option][1]) == (loss == min(CASE["option_losses_full"]))


def test_what_the_model_sees(visit, loaded, tmp_path):
    tower = loaded[0].config.vision_config
    side = 4 * tower.scales[-1]
    image = Image.new("RGB", (side, side), "black")
    image.paste("white", (side // 2, 0, side, side // 2))  # the quarter at the upper right
    image.save(tmp_path / "quarters.png")
    visit.upload(tmp_path / "quarters.png")
    expect(visit.thumbnails()).to_have_count(1)
    visit.tab("What the model sees")
    expect(visit.page.locator("#sight")).to_contain_text(f"{tower.num_image_tokens} visual tokens")
    spots = [visit.page.locator(f"#spot-{number} img") for number in range(len(tower.scales) + 1)]
    levels = [visit.page.locator(f"#level-{scale} img") for scale in tower.scales]
    for image in (*levels, *spots):
        expect(image).to_be_visible()

    for across, brightness in ((0.8, 255), (0.2, 0)):
        before = [image.get_attribute("src") for image in spots]
        box = levels[-1].bounding_box()
        levels[-1].click(position={"x": across * box["width"], "y": 0.2 * box["height"]})
        for image, source in zip(spots, before, strict=True):
            expect(image).not_to_have_attribute("src", source)
            assert middle(visit, image) == pytest.approx(brightness, abs=8)


def test_another_model_and_another_square(visit, tmp_path):
    Image.new("RGB", (80, 40), "white").save(tmp_path / "wide.png")
    visit.upload(tmp_path / "wide.png")
    expect(visit.thumbnails()).to_have_count(1)
    for box, choice in (("Model", "baseline"), ("An image that is not square is", "cut in the middle")):
        if box != "Model":
            visit.page.get_by_role("button", name="Settings").click()
        visit.page.get_by_label(box).click()
        visit.page.get_by_role("option", name=choice).click()
    visit.ask("What?")
    visit.wait_until_answered()
    visit.tab("Likelihood")
    visit.page.locator("#weigh").click()
    expect(visit.page.locator("table.s2-options caption").first).to_have_text("baseline")
    visit.tab("What the model sees")
    expect(visit.page.locator("#sees-timing")).to_contain_text("80 x 40")
    corner = visit.page.locator("#level-56 img")
    expect(corner).to_be_visible()
    assert middle(visit, corner) == 255


def middle(visit, image) -> int:
    """Red of an image's middle pixel, as the browser draws it."""
    return image.evaluate(
        """async image => {
            await image.decode();
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 1;
            const to = canvas.getContext("2d");
            to.drawImage(image, image.naturalWidth / 2, image.naturalHeight / 2, 1, 1, 0, 0, 1, 1);
            return to.getImageData(0, 0, 1, 1).data[0];
        }"""
    )


MARKUP = (
    "<img src=x onerror=window.stung=1><script>window.stung=1</script><b>bold</b> &amp; <svg onload=window.stung=1>"
)


def test_markup_is_shown_and_never_run(visit):
    visit.ask(MARKUP)
    visit.wait_until_answered()
    expect(visit.bubbles("user")).to_contain_text(MARKUP)
    visit.tab("Likelihood")
    shown(visit)
    visit.fill("#weighed", MARKUP)
    visit.fill("#options", f"{MARKUP}\nno")
    visit.page.locator("#weigh").click()
    expect(visit.page.locator("table.s2-options").first).to_contain_text(MARKUP)
    assert visit.page.evaluate("window.stung") is None


def told(visit, message):
    """One message is shown, this one, and closed."""
    toast = visit.page.locator(".toast-body")
    expect(toast).to_have_count(1)
    expect(toast).to_contain_text(re.compile(message))
    visit.page.locator(".toast-close").click()
    expect(toast).to_have_count(0)


def test_files_that_are_no_images_are_told_and_left_out(visit):
    name = "<img src=x onerror=window.stung=1>.png"
    for kind in ("text", "svg", "50,000 pixels wide", "cut PNG", "wide JPEG"):
        make, message = HOSTILE[kind]
        visit.upload({"name": name, "mimeType": "image/png", "buffer": make()})
        told(visit, message)
        expect(visit.thumbnails()).to_have_count(0)
    make, message = HOSTILE["cut WebP"]
    visit.page.locator("#question input[type=file]").set_input_files(
        [{"name": name, "mimeType": "image/png", "buffer": make()}]
    )
    expect(visit.page.locator("#question .thumbnail-item").first).to_be_visible()
    visit.ask("What?")
    told(visit, message)
    expect(visit.question).to_have_value("What?")
    expect(visit.bubbles("user")).to_have_count(0)
    assert visit.page.evaluate("window.stung") is None
    shown(visit)


def test_questions_that_cannot_be_asked_are_told(visit):
    visit.tab("Likelihood")
    visit.fill("#options", "")
    visit.page.locator("#weigh").click()
    told(visit, "two to 16 different options")
    visit.tab("Compare")
    visit.fill("#compared", "")
    visit.page.locator("#ask-both").click()
    told(visit, "type a question first")
    visit.tab("Chat")
    visit.ask("word " * 3000)
    told(visit, "2048")
    expect(visit.bubbles("user")).to_have_count(0)
    visit.ask("<image> <|im_end|> </s> What?")
    visit.wait_until_answered()
    assert "<image> <|im_end|> </s> What?" in visit.transcript()


@pytest.mark.parametrize("visit", [{"viewport": {"width": 390, "height": 844}, "has_touch": True}], indirect=True)
def test_a_phone(visit):
    shown(visit)
    visit.question.tap()
    visit.ask("What?")
    visit.wait_until_answered()
    for name in ("Chat", "Compare", "Likelihood", "What the model sees"):
        visit.tab(name)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_keyboard_alone(visit):
    page = visit.page
    visit.question.focus()
    page.keyboard.type("What?")
    page.keyboard.press("Enter")
    visit.wait_until_answered(0)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(document.activeElement.closest('[id]') || {}).id"))
    assert {"regenerate", "edit", "clear"} <= reached
    page.locator("#examples button").first.focus()
    page.keyboard.press("Enter")
    expect(visit.question).not_to_have_value("")
    page.get_by_role("tab", name="Compare").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#ask-both")).to_be_visible()


@pytest.mark.parametrize("visit", [{"color_scheme": "dark"}], indirect=True)
def test_dark(visit):
    dark = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", dark)[:3])) < 64
