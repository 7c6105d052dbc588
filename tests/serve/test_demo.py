"""The demo without a browser: sessions, what is shown of an image, and what the server refuses."""

import contextlib
import json
import math
import socket
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
import uvicorn
from demo_browser import GOLDEN
from PIL import Image
from torch.nn.functional import log_softmax

from llava_s2 import cli
from llava_s2.data.image_decoding import open_image
from llava_s2.errors import InputError
from llava_s2.model.inference import assistant_message, user_message
from llava_s2.serve.chat import Chat, Sampling
from llava_s2.serve.demo import guard
from llava_s2.serve.demo.demo_examples import examples
from llava_s2.serve.demo.likelihood import parse_options, weigh
from llava_s2.serve.demo.page import build_page
from llava_s2.serve.demo.page_images import MOST_IMAGES, add_image, read_address, sync
from llava_s2.serve.demo.pyramid import Sight, pyramid, spot, spot_of_original, with_borders
from llava_s2.serve.demo.server import build_app
from llava_s2.serve.demo.session import Model, Session
from llava_s2.serve.demo.show import timing_line

CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
GREEDY = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def model(loaded):
    return Model("tiny", *loaded)


def image(number=0):
    return open_image(GOLDEN / CASES[number]["image"])


def answered(session, model):
    return list(session.answer(model, GREEDY))[-1].answer.strip()


def test_a_session_answers_as_a_chat_does(model, tmp_path):
    session, chat = Session(), Chat(model.model, model.processor, GREEDY)
    for number, question in ((0, "What?"), (1, "And here?")):
        add_image(session, image(number), tmp_path)
        chat.add_image(image(number))
        session.begin(question)
        list(chat.ask(question))
        assert answered(session, model) == chat.reply.text
        assert session.turns[-1].reply.prompt_tokens == chat.reply.prompt_tokens
        timing = session.turns[-1].timing
        assert session.turns[-1].reply.known_images == number
        assert min(timing.tower, timing.prefill, timing.decode) > 0
        assert timing.tower + timing.prefill + timing.decode <= session.turns[-1].reply.seconds


def test_a_question_put_again_sees_what_it_saw(model, tmp_path):
    session = Session()
    add_image(session, image(), tmp_path)
    session.begin("What?")
    first = answered(session, model)
    session.begin("And?")
    second = answered(session, model)
    session.again()
    assert answered(session, model) == second
    session.take_back()
    session.again()
    assert (answered(session, model), len(session.turns)) == (first, 1)


def test_a_stopped_answer_ends_and_its_images_are_shown_again(model, tmp_path):
    session = Session()
    add_image(session, image(), tmp_path)
    session.begin("What?")
    session.stop()
    assert answered(session, model) == ""
    assert timing_line(session.turns[-1]) == "stopped before the first word"
    session.begin("What?")
    assert session.turns[-1].images == session.images and timing_line(session.turns[-1]) == ""
    pieces = session.answer(model, Sampling(max_new_tokens=1500))
    next(pieces)
    session.stop()
    list(pieces)
    assert session.turns[-1].reply.finish == "interrupted"
    assert timing_line(session.turns[-1]).endswith("stopped")


def test_errors_leave_a_session_as_it_was(model, tmp_path):
    session = Session()
    for act in (session.take_back, session.again, lambda: session.begin("  ")):
        with pytest.raises(InputError):
            act()
    session.begin("word " * 3000)
    with pytest.raises(InputError, match="2048"):
        list(session.answer(model, GREEDY))
    assert session.turns == []
    assert list(session.answer(model, GREEDY)) == []


def test_the_gallery_and_the_session_agree(tmp_path):
    session = Session()
    for shade in (10, 20):
        add_image(session, Image.new("RGB", (9, 9), (shade, 0, 0)), tmp_path)
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "new.png")
    (tmp_path / "text.png").write_text("text")
    elsewhere = tmp_path / "cache" / session.images[1].thumbnail.rsplit("/", 1)[1]
    errors = sync(session, [str(elsewhere), str(tmp_path / "new.png"), str(tmp_path / "text.png")], tmp_path)
    assert [held.image.getpixel((0, 0)) for held in session.images] == [(20, 0, 0), (0, 0, 255)]
    assert len(errors) == 1 and "text.png" in str(errors[0])
    held = list(session.images)  # a question that is sent before the page shows the copy comes with the upload's path
    assert not sync(session, [str(elsewhere), str(tmp_path / "new.png")], tmp_path) and session.images == held
    assert not sync(session, [str(elsewhere), held[1].thumbnail], tmp_path) and session.images == held
    assert not sync(session, [held[1].thumbnail], tmp_path) and session.images == held[1:]
    with pytest.raises(InputError, match="remove one"):
        for _ in range(MOST_IMAGES):
            add_image(session, image(), tmp_path)


def test_addresses_of_this_machine_are_not_fetched():
    for address in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "http://localhost/a.png", "ftp://host/a.png"):
        with pytest.raises(InputError):
            read_address(address)


def test_the_pyramid_holds_the_pixels_that_the_tower_gets(model):
    seen = []
    hook = model.model.model.vision_tower.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pixels = model.processor.image_processor([image()], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        model.model.model.vision_tower(pixels)
    hook.remove()
    tiles = torch.cat(seen)
    prepared = model.processor.image_processor
    mean, std = (np.array(values)[:, None, None] for values in (prepared.image_mean, prepared.image_std))
    shown = []
    for level in pyramid(image(), Sight.of(model.model, model.processor), model.processor):
        side = level.side // level.tiles
        for row in range(level.tiles):
            for column in range(level.tiles):
                box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
                shown.append((np.asarray(level.image.crop(box)).transpose(2, 0, 1) / 255 - mean) / std)
    assert len(shown) == len(tiles)
    # Within a step of 8 bits where the resize stayed in range; it overshoots 0 … 1 at edges, which no image can show.
    exact = np.abs(np.stack(shown) - tiles.numpy()) <= 0.51 / 255 / std + 1e-4
    inside = (tiles.numpy() * std + mean >= 0) & (tiles.numpy() * std + mean <= 1)
    assert exact[inside].all() and inside.mean() > 0.5


@pytest.mark.parametrize(
    ("size", "at"), [((900, 300), (0.75, 0.5)), ((300, 900), (0.5, 0.25)), ((600, 600), (0.1, 0.9))]
)
def test_a_spot_is_the_same_place_at_every_scale_and_in_the_image(model, size, at):
    width, height = size
    square = max(size)
    x, y = at[0] * square - (square - width) / 2, at[1] * square - (square - height) / 2
    image = Image.new("RGB", size, "black")
    image.paste((255, 0, 0), (round(x) - 30, round(y) - 30, round(x) + 30, round(y) + 30))
    sight = Sight.of(model.model, model.processor)
    levels = pyramid(image, sight, model.processor)
    views = [*spot(levels, at, 0.1, 64), spot_of_original(image, sight, at, 0.1, 64)]
    assert [view.getpixel((32, 32))[0] > 180 and view.size == (64, 64) for view in views] == [True] * len(views)
    assert max(spot_of_original(image, sight, (0.5, 0.5), 0.02, 8).getpixel((4, 4))) == 0


def test_borders_stand_between_tiles(model):
    level = pyramid(Image.new("RGB", (90, 90)), Sight.of(model.model, model.processor), model.processor)[-1]
    drawn = np.asarray(with_borders(level, (0.5, 0.5), 0.1))
    assert drawn.shape == (level.side, level.side, 3)  # pixel for pixel
    lit = np.flatnonzero(drawn[3].max(axis=1) > 0)
    tile = level.side / level.tiles
    assert {round(at / tile) for at in lit.tolist()} == set(range(level.tiles + 1))
    marked = np.argwhere((drawn == (255, 210, 0)).all(axis=2))
    assert marked.min() == pytest.approx(0.45 * level.side, abs=1) and marked.max() == pytest.approx(
        0.55 * level.side, abs=1
    )


def test_probabilities_are_those_of_whole_answers(model):
    options = ["red", "a much longer answer", "blue"]
    weights = {weight.option: weight for weight in weigh(model, [image()], "What?", options)}
    totals, means = [], []
    for option in options:
        messages = [user_message("What?", 1), assistant_message(option)]
        texts = [
            model.processor.apply_chat_template(part, tokenize=False, add_generation_prompt=len(part) == 1)
            for part in (messages, messages[:1])
        ]
        whole, prompt = (model.processor(text=text, images=image(), return_tensors="pt") for text in texts)
        start = prompt["input_ids"].shape[1]
        with torch.inference_mode():
            logits = model.model(**whole).logits[0].float()
            logits[:, model.processor.image_token_id] = -torch.inf
        ids = whole["input_ids"][0]
        steps = [log_softmax(logits[i - 1], -1)[ids[i]].item() for i in range(start, len(ids))]
        totals.append(sum(steps))
        means.append(-sum(steps) / len(steps))
    shares = np.exp(np.array(totals) - max(totals))
    for option, share, mean in zip(options, shares / shares.sum(), means, strict=True):
        assert weights[option].probability == pytest.approx(share, rel=1e-3)
        assert weights[option].loss == pytest.approx(mean, abs=1e-4)
    assert math.isclose(sum(weight.probability for weight in weights.values()), 1)


@pytest.mark.parametrize("text", ["", "one", "one\none\n", "\n".join(map(str, range(40)))])
def test_options_that_cannot_be_weighed(text):
    with pytest.raises(InputError, match="two to 16"):
        parse_options(text)


def test_examples_are_large_images_with_their_answers():
    shown = examples()
    assert len({example.question for example in shown}) > 1
    for example in shown:
        assert min(example.image.size) >= 1008 and len(set(example.options)) == len(example.options) >= 2


@contextlib.contextmanager
def served(model, folder, **options):
    page = build_page([model], None, examples()[:1], folder, (0.0, 1.0, 8))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(build_app(page, folder, **options), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(model, tmp_path_factory):
    with served(model, tmp_path_factory.mktemp("page"), local_names_only=True) as address:
        yield address


def ask(address, path, body=None, **headers):
    """Status, headers and body of an answer."""
    request = urllib.request.Request(f"http://{address}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_the_page_forbids_what_it_does_not_need(address):
    status, headers, body = ask(address, "/", accept="text/html")
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert status == 200 and b"LLaVA" in body
    assert policy["default-src"] == "'self'" and policy["object-src"] == "'none'"
    assert all(source == "'self'" or source.startswith("'sha256-") for source in policy["script-src"].split())
    _, headers, _ = ask(address, "/theme.css")
    assert "sandbox" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=https://example.com/",
        "/gradio_api/file%3Dhttps%3A//example.com/",
        "/gradio_api/proxy=https://example.com/",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=pyproject.toml",
        "/static/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc/passwd",
        "/docs",
        "/openapi.json",
        "/gradio_api/info",
        "/monitoring",
    ],
)
def test_other_files_and_addresses_are_not_given(address, path):
    status, _, body = ask(address, path)
    assert status in (403, 404) and b"root:" not in body and b"[project]" not in body


def test_a_file_is_not_fetched_from_an_address(address):
    file = {"path": "http://127.0.0.1:1/x.png", "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [None, [{"image": file}]], "fn_index": 0, "session_hash": "x"}).encode()
    status, _, answer = ask(address, "/gradio_api/queue/join", body, **{"content-type": "application/json"})
    assert (status, b"uploads" in answer) == (400, True)


def test_another_name_of_this_machine_is_not_answered(address):
    assert ask(address, "/", host="evil.example:80")[0] == 403


def test_a_body_is_bounded_in_size_and_time(address, monkeypatch):
    json_type = {"content-type": "application/json"}
    assert ask(address, "/gradio_api/queue/join", b" " * (guard.MAX_BODY_BYTES + 1), **json_type)[0] == 413
    assert ask(address, "/gradio_api/queue/join", b"{broken", **json_type)[0] == 422
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address}\r\nContent-Length: 999\r\n"
        slow.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n--x".encode())
        assert b" 408 " in slow.recv(100)
    assert ask(address, "/")[0] == 200


def test_only_who_knows_the_password_comes_in(model, tmp_path):
    with served(model, tmp_path, auth=[("ann", "secret")]) as address:
        assert b'"auth_required":true' in ask(address, "/", accept="text/html")[2].replace(b" ", b"")
        assert ask(address, "/config")[0] == 401
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert ask(address, "/login", b"username=ann&password=wrong", **form)[0] == 400
        status, headers, _ = ask(address, "/login", b"username=ann&password=secret", **form)
        assert status == 200
        cookie = "; ".join(value.split(";")[0] for value in headers.get_all("set-cookie"))
        assert ask(address, "/config", cookie=cookie)[0] == 200


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--host", "0.0.0.0"], "--no-auth"),
        (["--auth-file", "{}/none"], "none"),
        (["--auth-file", "{}/bad"], "line 2"),
        (["--auth-file", "{}/empty"], "no line"),
        (["--port", "{taken}"], "--port"),
        (["--port", "99999"], "--port"),
        (["--host", "no.such.host.invalid"], "no.such.host"),
    ],
)
def test_what_cannot_be_served_is_one_line_before_any_weight(capsys, monkeypatch, tmp_path, flags, named):
    monkeypatch.setattr("llava_s2.formats.model_source.ModelSource.load", lambda self: pytest.fail("loaded weights"))
    (tmp_path / "bad").write_text("ann:secret\nbob\n")
    (tmp_path / "empty").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        assert cli.main(["demo", *(flag.format(tmp_path, taken=taken) for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
